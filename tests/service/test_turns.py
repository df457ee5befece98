"""Whose turn it is: short work overtakes long work, and long work is never forgotten."""

from __future__ import annotations

import asyncio

import pytest

from service.pace import Pace
from service.turns import LARGE, Turn, Turns

pytestmark = pytest.mark.anyio
SHORT, LONG = 1000, 8 * LARGE


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Work:
    """Pieces of work in the order in which they get a worker; each holds it until `end`."""

    def __init__(self, workers: int) -> None:
        self.clock = Clock()
        self.turns: Turns[int] = Turns(workers, self.clock)
        self.begun: list[str] = []
        self._held: dict[str, tuple[Turn[int], int]] = {}
        for worker in range(workers):
            self.turns.add(worker)

    async def begin(self, name: str, size: int) -> asyncio.Task[None]:
        """Ask for a worker."""
        task = asyncio.create_task(self._take(name, size))
        await asyncio.sleep(0)
        return task

    async def _take(self, name: str, size: int) -> None:
        self._held[name] = await self.turns.take(size)
        self.begun.append(name)

    async def end(self, name: str, seconds: float = 0.0) -> None:
        """It has taken so long."""
        self.clock.now += seconds
        self.turns.done(*self._held.pop(name))
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_long_work_leaves_a_helper_to_short_work() -> None:
    work = Work(workers=3)
    for number in range(5):
        await work.begin(f"long {number}", LONG)
    assert work.begun == ["long 0", "long 1"]
    await work.begin("short", SHORT)
    assert work.begun[2:] == ["short"]
    await work.end("short")
    await work.end("long 0")
    assert work.begun[3:] == ["long 2"]


async def test_a_single_helper_does_all_work() -> None:
    work = Work(workers=1)
    for name, size in (("first", LONG), ("second", LONG), ("third", SHORT)):
        await work.begin(name, size)
    for index in range(3):
        await work.end(work.begun[index])
    assert sorted(work.begun) == ["first", "second", "third"]


async def test_short_work_goes_first_but_long_work_does_not_wait_for_ever() -> None:
    work = Work(workers=1)
    for name, size, seconds in (("a", SHORT, 0.01), ("b", LONG, 10.0)):
        await work.begin(name, size)
        await work.end(name, seconds)
    await work.begin("busy", SHORT)
    await work.begin("long", LONG)
    served = 0
    while "long" not in work.begun:  # under a load of short work that never ends
        await work.begin(f"short {served}", SHORT)
        await work.end(work.begun[-1], seconds=1.0)
        served += 1
        assert served < 10_000
    assert served > 1


async def test_who_leaves_takes_no_helper_along() -> None:
    work = Work(workers=1)
    await work.begin("first", SHORT)
    leaving = [await work.begin(name, SHORT) for name in ("second", "third")]
    leaving[0].cancel()
    await asyncio.wait(leaving[:1])
    leaving.append(await work.begin("fourth", SHORT))
    leaving[1].cancel()  # still in line when the worker becomes free
    ended = asyncio.create_task(work.end("first"))
    asyncio.get_running_loop().call_soon(leaving[2].cancel)  # with a worker of which it is not told
    await asyncio.wait({ended, *leaving})
    await work.begin("fifth", SHORT)
    assert work.begun == ["first", "fifth"]


async def test_the_backlog_is_about_what_it_then_takes() -> None:
    work = Work(workers=2)
    for _ in range(5):
        await work.begin("learnt", SHORT)
        await work.end("learnt", seconds=2.0)
    assert work.turns.backlog_seconds == 0
    for number in range(6):
        await work.begin(str(number), SHORT)
    predicted, started = work.turns.backlog_seconds, work.clock.now
    for first in (0, 2, 4):
        await work.end(str(first), seconds=2.0)
        await work.end(str(first + 1))
    assert predicted == pytest.approx(work.clock.now - started, rel=0.2)


def test_pace_is_learnt_by_size() -> None:
    pace = Pace()
    assert pace.seconds(100, 100) == 0
    for _ in range(50):
        pace.note(5_000, 50_000, 1.0)
        pace.note(300_000, 600_000, 3.0)
    assert pace.seconds(5_000, 100_000) == pytest.approx(2)
    assert pace.seconds(320_000, 100_000) == pytest.approx(0.5)
    assert pace.seconds(10**9, 200_000) == pytest.approx(1)  # the nearest size that was seen
    assert pace.due(7.0, 300_000, 0) == 7.0
