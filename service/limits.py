"""How many requests and how many bytes a server holds at once."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from service.errors import Overloaded


class Places:
    """So many requests at work; one more is Overloaded, with `retry_after()` seconds to wait."""

    def __init__(self, places: int, retry_after: Callable[[], float]) -> None:
        self.places = places
        self.taken = 0
        self._retry_after = retry_after

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place."""
        if self.taken >= self.places:
            raise Overloaded(self._retry_after())
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Memory:
    """Bytes held together, by whoever takes them; each gives back what it took.

    Who finds nothing held may exceed the budget: otherwise it could never be served.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held = 0
        self._turn = asyncio.Lock()  # first come, first served
        self._freed = asyncio.Event()

    def take(self, size: int) -> None:
        """Take bytes at once, or Overloaded."""
        self.check(size)
        self.held += size

    def check(self, size: int) -> None:
        """Overloaded if there is no room for so many bytes now."""
        if not self._fits(size):
            raise Overloaded(1)

    async def wait(self, size: int) -> None:
        """Take bytes as soon as there is room."""
        async with self._turn:
            while not self._fits(size):
                self._freed.clear()
                await self._freed.wait()
            self.held += size

    def hold_for(self, array: NDArray[Any], size: int) -> None:
        """Give back what was taken when this array is no longer used by anybody."""
        loop = asyncio.get_running_loop()

        def released() -> None:  # in whichever thread used it last
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.give_back, size)

        weakref.finalize(array, released)

    def give_back(self, size: int) -> None:
        """Return what was taken."""
        self.held -= size
        self._freed.set()

    def _fits(self, size: int) -> bool:
        return not self.held or self.held + size <= self.budget
