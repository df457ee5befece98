"""Runs numbered cases in processes that may die or hang, and says how each case ended.

A process has one case at a time, so that a death has one cause. A case is a function of its number
alone, so that each can be repeated.
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
Maker = Callable[[Any], Case]  # is called once in each process, with the inputs of the cases


def endings(
    maker: Maker, inputs: Any, numbers: Iterable[int], processes: int, seconds: float
) -> Iterator[Ending]:
    """Run all cases; yield their endings as they come. A case is killed after `seconds`."""
    waiting = iter(numbers)
    runners = [_Runner(maker, inputs) for _ in range(processes)]
    try:
        while busy := [runner for runner in runners if runner.busy or runner.give(waiting)]:
            remaining = min(runner.begun for runner in busy) + seconds - time.monotonic()
            ready = wait([runner.pipe for runner in busy], max(0.0, remaining))
            for runner in busy:
                if runner.pipe in ready:
                    ending = runner.take()
                elif time.monotonic() > runner.begun + seconds:
                    ending = runner.restart(TIMEOUT, f"no end within {seconds:g} s")
                else:
                    continue
                if ending is not None:
                    yield ending
    finally:
        for runner in runners:
            runner.stop()


class _Runner:
    """One process, and the case that runs in it."""

    def __init__(self, maker: Maker, inputs: Any) -> None:
        self._start = (maker, inputs)
        self._number: int | None = None
        self._spawn()

    @property
    def busy(self) -> bool:
        return self._number is not None

    def give(self, numbers: Iterator[int]) -> bool:
        """Begin the next case; return False if there is none."""
        self._number = next(numbers, None)
        if self._number is None:
            return False
        self._begun = time.monotonic() + (0 if self._ready else _START_SECONDS)
        # A process that has died between two cases is noticed when its pipe is read.
        with contextlib.suppress(OSError):
            self.pipe.send(self._number)
        return True

    @property
    def begun(self) -> float:
        """When the case began (monotonic clock).

        For a process that has still to start it is the time by which it must have done so.
        """
        return self._begun

    def take(self) -> Ending | None:
        """Read what the process says: how the case ended, or None if it has only just started."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return self.restart(CRASH, f"exit status {self._process.exitcode}")
        if message == _READY:
            self._ready, self._begun = True, time.monotonic()
            return None
        assert isinstance(message, Ending)
        self._number = None
        return message

    def restart(self, outcome: str, reason: str) -> Ending:
        """Kill the process, start another, and return this as the ending of the case."""
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
        self.pipe, child_end = context.Pipe()
        self._process = context.Process(target=_run, args=(*self._start, child_end), daemon=True)
        self._process.start()
        child_end.close()
        self._ready = False
        self._number = None
        self._begun = 0.0


def _run(maker: Maker, inputs: Any, pipe: Connection) -> None:
    """Run the cases whose numbers come through the pipe, until it is closed."""
    case = maker(inputs)
    pipe.send(_READY)
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        pipe.send(case(number))
