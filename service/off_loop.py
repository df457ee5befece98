"""Iteration in threads: a slow step on the event loop would stop every other request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator
from typing import Generic, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class OffLoop(Generic[T]):
    """Iterates over a generator; each item is made in a thread when it is asked for."""

    def __init__(self, items: Generator[T, None, None]) -> None:
        self._items = items
        self._turn = threading.Lock()  # a step that was cancelled still runs in its thread

    async def __aiter__(self) -> AsyncIterator[T]:
        while (item := await asyncio.to_thread(self._next)) is not None:
            yield item

    def close(self) -> None:
        """Close the generator: a cancelled task may refer to it, and to its memory, for long."""
        asyncio.get_running_loop().run_in_executor(None, self._close)

    def _next(self) -> T | None:
        with self._turn:
            return next(self._items, None)

    def _close(self) -> None:
        with self._turn:
            self._items.close()


class Streamed(StreamingResponse):
    """A response in pieces: each is made in a thread when the piece before it was sent."""

    def __init__(
        self, pieces: Generator[bytes, None, None], headers: dict[str, str], media_type: str
    ) -> None:
        self._pieces = OffLoop(pieces)
        super().__init__(aiter(self._pieces), headers=headers, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all pieces, and release what they are made of even if that fails."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pieces.close()
