"""Which piece of work gets the next free worker; workers are equal, such as decoders."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from service.pace import Pace

LARGE: Final = 2 << 20
"""Work of more bytes may not take the last free worker: that is kept for smaller work."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Turn(Generic[T]):
    """A piece of work of `size` bytes. It waits for a worker, which works on it since `begun`."""

    size: int
    due: float
    worker: asyncio.Future[T]
    begun: float = field(default=0.0)

    @property
    def large(self) -> bool:
        """Whether this work may not take the last free worker."""
        return self.size > LARGE


class Turns(Generic[T]):
    """Assigns workers to work of known sizes. Short work overtakes long work, within bounds.

    Of several workers, one is kept for short work. The worker used last is taken first: its memory
    is still in the processor's caches.
    """

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_large = max(1, workers - 1)
        self._workers = workers
        self._clock = clock
        self._free: list[T] = []
        self._waiting: tuple[deque[Turn[T]], deque[Turn[T]]] = (deque(), deque())  # short, long
        self._running: set[Turn[T]] = set()
        self._pace = Pace()

    async def take(self, size: int) -> tuple[Turn[T], T]:
        """Wait for this work's turn, and return it with its worker."""
        due = self._pace.due(self._clock(), size, size)
        turn = Turn(size, due, asyncio.get_running_loop().create_future())
        self._waiting[turn.large].append(turn)
        self._hand_out()
        try:
            return turn, await turn.worker
        except asyncio.CancelledError:
            self.leave(turn)
            raise

    def add(self, worker: T) -> None:
        """Add a free worker."""
        self._free.append(worker)
        self._hand_out()

    def done(self, turn: Turn[T], worker: T) -> None:
        """End a turn, whether its work succeeded or failed, and free its worker (or a new one)."""
        self._pace.note(turn.size, turn.size, self._clock() - turn.begun)
        self._running.remove(turn)
        self.add(worker)

    @property
    def backlog_seconds(self) -> float:
        """An estimate of how long all waiting and running work will take."""
        now, seconds = self._clock(), 0.0
        for turn in (turn for line in self._waiting for turn in line):
            seconds += self._pace.seconds(turn.size, turn.size)
        for turn in self._running:
            seconds += max(0.0, self._pace.seconds(turn.size, turn.size) - (now - turn.begun))
        return seconds / self._workers

    def _hand_out(self) -> None:
        while self._free and (line := self._next_line()):
            turn = line.popleft()
            if turn.worker.cancelled():  # its task has yet to run and leave the line
                continue
            turn.begun = self._clock()
            self._running.add(turn)
            turn.worker.set_result(self._free.pop())

    def _next_line(self) -> deque[Turn[T]] | None:
        """Return the line whose first turn is next, or None if all must wait."""
        short, long = self._waiting
        lines = [line for line in (short, long) if line]
        if sum(turn.large for turn in self._running) >= self._most_large:
            lines = [short] if short else []
        return min(lines, key=lambda line: line[0].due, default=None)

    def leave(self, turn: Turn[T]) -> None:
        """Give up a turn before any work was done; its worker, if it has one, becomes free."""
        if turn in self._running:
            self._running.remove(turn)
            self.add(turn.worker.result())
        elif turn in self._waiting[turn.large]:
            self._waiting[turn.large].remove(turn)
