"""The order of waiting jobs, how old a batch is, and how long all that waits will take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

from service.errors import Overloaded
from tests.batching_kit import MEL, batching, blocked, windows
from tests.service_kit import FakeModel, eventually

pytestmark = pytest.mark.anyio


async def test_a_short_job_overtakes_long_ones_but_not_for_ever() -> None:
    model = FakeModel()
    async with batching(model.window_features, max_samples=800) as batcher:
        batcher._pace.note(100, 100, 0.01)  # seconds for a window
        await blocked(model, batcher)
        long = [asyncio.ensure_future(batcher.submit(windows(i, count=8), MEL)) for i in range(3)]
        await eventually(lambda: batcher.waiting == 3)
        (jobs,) = batcher._groups.values()
        jobs[0].due -= 3600  # has waited its share
        short = asyncio.ensure_future(batcher.submit(windows(9), MEL))
        await eventually(lambda: batcher.waiting == 4)
        model.may_run.set()
        await asyncio.gather(short, *long)
    assert model.batches[1:] == [(8, 100), (1, 100), (8, 100), (8, 100)]


async def test_jobs_of_one_size_keep_their_order() -> None:
    model = FakeModel()
    async with batching(model.window_features, max_samples=100) as batcher:
        await blocked(model, batcher)
        done: list[int] = []
        jobs = [asyncio.ensure_future(batcher.submit(windows(i), MEL)) for i in range(6)]
        for number, job in enumerate(jobs):
            job.add_done_callback(lambda _, number=number: done.append(number))
        await eventually(lambda: batcher.waiting == 6)
        model.may_run.set()
        await asyncio.gather(*jobs)
    assert done == sorted(done)


async def test_a_cancelled_job_leaves_the_queue_at_once_and_counts_while_it_is_computed() -> None:
    model = FakeModel()
    async with batching(model.window_features, max_queue=2) as batcher:
        running = await blocked(model, batcher)
        gone = asyncio.ensure_future(batcher.submit(windows(1), MEL))
        stays = asyncio.ensure_future(batcher.submit(windows(2), MEL))
        await eventually(lambda: batcher.waiting == 2)
        gone.cancel()
        await eventually(lambda: batcher.waiting == 1)
        running.cancel()
        await eventually(lambda: batcher.abandoned == 1)
        with pytest.raises(Overloaded):
            await batcher.submit(windows(3), MEL)
        model.may_run.set()
        await stays
        assert (batcher.waiting, batcher.abandoned) == (0, 0)
        await batcher.submit(windows(3), MEL)


async def test_the_age_of_a_batch_under_way_is_known() -> None:
    model = FakeModel()
    async with batching(model.window_features, in_flight=2) as batcher:
        assert batcher.oldest_seconds == 0
        first = await blocked(model, batcher)
        batcher._running[0].since -= 500
        second = asyncio.ensure_future(batcher.submit(windows(1), MEL))
        await eventually(lambda: len(batcher._running) == 2)
        assert 500 < batcher.oldest_seconds < 1000
        model.may_run.set()
        await asyncio.gather(first, second)
        assert batcher.oldest_seconds == 0


class Clockwork:
    """A model that takes a known time for every sample, on a clock of its own."""

    def __init__(self, seconds_per_sample: float) -> None:
        self.now = 0.0
        self._seconds_per_sample = seconds_per_sample
        self._fake = FakeModel()
        self.may_run = self._fake.may_run

    def __call__(self) -> float:
        return self.now

    def window_features(
        self, batch: Sequence[torch.Tensor], taps: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        features = self._fake.window_features(batch, taps)
        self.now += self._seconds_per_sample * sum(windows.numel() for windows in batch)
        return features


async def test_the_backlog_is_the_time_that_all_that_is_known_takes() -> None:
    model = Clockwork(0.001)
    async with batching(model.window_features, max_samples=1000, clock=model) as batcher:
        for _ in range(3):
            with batcher.expecting() as request:  # a typical request: five windows
                request.arrived(500, 100)
                await request.submit(windows(0, count=5), MEL)
        assert batcher.backlog_seconds == 0
        model.may_run.clear()
        running = asyncio.ensure_future(batcher.submit(windows(0, count=10), MEL))
        await eventually(lambda: len(batcher._running) == 1)
        model.now += 0.4  # of one second
        waiting = [asyncio.ensure_future(batcher.submit(windows(i), MEL)) for i in range(10)]
        await eventually(lambda: batcher.waiting == 10)
        with batcher.expecting() as decoded, batcher.expecting():
            decoded.arrived(2000, 100)
            piece = asyncio.ensure_future(decoded.submit(windows(1, count=5), MEL))
            await eventually(lambda: batcher.waiting == 11)
            predicted = batcher.backlog_seconds
        # What runs, what waits, what the decoded one still submits, and the one being decoded.
        assert predicted == pytest.approx(0.6 + 1.0 + 2.0 + 0.5, rel=0.1)
        started = model.now - 0.4
        model.may_run.set()
        await asyncio.gather(running, piece, *waiting)
        actual = model.now - started + 1.5 + 0.5 - 0.4
        assert actual / 2 < predicted < actual * 2
