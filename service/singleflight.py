"""Identical requests at the same time share one computation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """The work in progress, by key. It is cancelled when its last waiter is gone."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}
        self._waiting: dict[Hashable, int] = {}

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Wait for the work under `key`, and start it unless it is in progress.

        An error reaches every waiter. Cancelling one waiter, even the first, does not affect the
        others.
        """
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(work())
            self._tasks[key], self._waiting[key] = task, 0
            task.add_done_callback(lambda done: self._land(key, done))
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if self._tasks.get(key) is task:
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    self._land(key, task)
                    task.cancel()
                    await asyncio.wait({task})  # its memory is counted until it has ended

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a result."""
        return sum(self._waiting.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def _land(self, key: Hashable, task: asyncio.Task[T]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key], self._waiting[key]
        if task.done() and not task.cancelled():
            task.exception()  # mark it as seen: asyncio logs errors that nobody has asked for
