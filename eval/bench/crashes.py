"""Numbered cases in processes that may die or hang: each end is that of one case.

A case is a function of its number alone, so that any of them can be repeated.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Final

CRASH: Final = "CRASH"
TIMEOUT: Final = "TIMEOUT"
_START_SECONDS: Final = 120.0
_READY: Final = "ready"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a case ended, and why."""

    number: int
    outcome: str
    reason: str = ""


Case = Callable[[int], Ending]
Maker = Callable[[Any], Case]  # makes the cases' function of what it is given, in the process


def endings(
    maker: Maker, given: Any, numbers: Iterable[int], processes: int, seconds: float
) -> Iterator[Ending]:
    """The ending of every case, as they come; none may take longer than `seconds`."""
    waiting = iter(numbers)
    runners = [_Runner(maker, given) for _ in range(processes)]
    try:
        while busy := [runner for runner in runners if runner.busy or runner.give(waiting)]:
            late = min(runner.deadline for runner in busy) + seconds - time.monotonic()
            ready = wait([runner.pipe for runner in busy], max(0.0, late))
            for runner in busy:
                if runner.pipe in ready:
                    ending = runner.take()
                elif time.monotonic() > runner.deadline + seconds:
                    ending = runner.restart(TIMEOUT, f"no end within {seconds:g} s")
                else:
                    continue
                if ending is not None:
                    yield ending
    finally:
        for runner in runners:
            runner.stop()


class _Runner:
    """One process and the case that it has."""

    def __init__(self, maker: Maker, given: Any) -> None:
        self._start = (maker, given)
        self._number: int | None = None
        self._spawn()

    @property
    def busy(self) -> bool:
        return self._number is not None

    def give(self, numbers: Iterator[int]) -> bool:
        """Begin the next case; False if there is none."""
        self._number = next(numbers, None)
        if self._number is None:
            return False
        self._begun = time.monotonic() + (0 if self._ready else _START_SECONDS)
        with contextlib.suppress(OSError):  # it died without a case; reading finds out
            self.pipe.send(self._number)
        return True

    @property
    def deadline(self) -> float:
        """When the case began; later for a process that has still to start."""
        return self._begun

    def take(self) -> Ending | None:
        """What the process says: None when it has only just started."""
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return self.restart(CRASH, f"exit status {self._process.exitcode}")
        if said == _READY:
            self._ready, self._begun = True, time.monotonic()
            return None
        assert isinstance(said, Ending)
        self._number = None
        return said

    def restart(self, outcome: str, reason: str) -> Ending:
        """A new process; the case of the old one has ended so."""
        number = self._number
        assert number is not None
        self.stop()
        self._spawn()
        return Ending(number, outcome, reason)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def _spawn(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(*self._start, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False
        self._number = None
        self._begun = 0.0


def _run(maker: Maker, given: Any, pipe: Connection) -> None:
    case = maker(given)
    pipe.send(_READY)
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        pipe.send(case(number))
