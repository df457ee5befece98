"""Iteration beside the event loop: what takes its time there would stop every other request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

T = TypeVar("T")


async def off_loop(items: Iterator[T]) -> AsyncIterator[T]:
    """The same items, each made in a thread when it is asked for."""
    while (item := await asyncio.to_thread(_next, items)) is not None:
        yield item


def _next(items: Iterator[T]) -> T | None:
    return next(items, None)
