"""Bounds on how many requests and how many bytes a server holds at once."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from service.errors import Overloaded


class Slots:
    """Slots for requests at work. Without a free one, Overloaded names `retry_after()` seconds."""

    def __init__(self, slots: int, retry_after: Callable[[], float]) -> None:
        self.slots = slots
        self.taken = 0
        self._retry_after = retry_after

    def check(self) -> None:
        """Raise Overloaded if no slot is free."""
        if self.taken >= self.slots:
            raise Overloaded(self._retry_after())

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a slot in this context, or raise Overloaded."""
        self.check()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Memory:
    """A budget of bytes that requests share. Each request gives back what it took.

    A request larger than the budget is admitted when nothing else is held: otherwise it could
    never be served. Overloaded names `retry_after()` seconds to wait.
    """

    def __init__(self, budget: int, retry_after: Callable[[], float] = lambda: 1.0) -> None:
        self.budget = budget
        self.held = 0
        self._retry_after = retry_after
        self._turn = asyncio.Lock()  # first come, first served
        self._freed = asyncio.Event()

    @property
    def awaited(self) -> bool:
        """Whether a request waits for memory."""
        return self._turn.locked()

    def take(self, size: int) -> None:
        """Take bytes at once, or raise Overloaded."""
        self.check(size)
        self.held += size

    def check(self, size: int) -> None:
        """Raise Overloaded if `size` bytes do not fit now."""
        if not self._fits(size):
            raise Overloaded(self._retry_after())

    async def wait(self, size: int) -> None:
        """Take bytes as soon as they fit."""
        async with self._turn:
            while not self._fits(size):
                self._freed.clear()
                await self._freed.wait()
            self.held += size

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """Count the bytes of one request; the rest of them is given back when the context ends."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            hold.keep(0)

    def hold_for(self, array: NDArray[Any], size: int) -> None:
        """Give back `size` bytes when nothing refers to this array any more."""
        loop = asyncio.get_running_loop()

        def released() -> None:  # runs in the thread that dropped the last reference
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.give_back, size)

        weakref.finalize(array, released)

    def give_back(self, size: int) -> None:
        """Give back bytes that were taken."""
        self.held -= size
        self._freed.set()

    def _fits(self, size: int) -> bool:
        return not self.held or self.held + size <= self.budget


class Hold:
    """The bytes that one request holds."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._size = 0

    async def wait(self, size: int) -> None:
        """Take bytes as soon as they fit."""
        await self._memory.wait(size)
        self._size += size

    def keep(self, size: int) -> None:
        """Give back all but `size` bytes."""
        self._memory.give_back(self._size - size)
        self._size = size
