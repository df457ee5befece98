"""The order of waiting jobs, how old a batch is, and how long all that waits will take."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import Overloaded
from tests.batching_kit import MEL, Clockwork, batching, blocked, windows
from tests.service_kit import FakeModel, eventually

pytestmark = pytest.mark.anyio


async def test_a_short_job_overtakes_long_ones_but_not_for_ever() -> None:
    model = Clockwork(1e-4)
    async with batching(model.window_features, max_samples=800, clock=model) as batcher:
        await batcher.submit(windows(0), MEL)  # what a window takes is known from now on
        await blocked(model, batcher)

        def submit(value: float, count: int) -> asyncio.Future[object]:
            return asyncio.ensure_future(batcher.submit(windows(value, count=count), MEL))

        long = [submit(0, 8)]
        await eventually(lambda: batcher.waiting == 1)
        model.now += 3600  # the first one has waited its share
        long += [submit(1, 8), submit(2, 8)]
        await eventually(lambda: batcher.waiting == 3)
        short = submit(9, 1)
        await eventually(lambda: batcher.waiting == 4)
        model.may_run.set()
        await asyncio.gather(short, *long)
    assert model.batches[2:] == [(8, 100), (1, 100), (8, 100), (8, 100)]


async def test_jobs_of_one_size_keep_their_order() -> None:
    model = FakeModel()
    async with batching(model.window_features, max_samples=100) as batcher:
        await blocked(model, batcher)
        done: list[int] = []
        jobs = [asyncio.ensure_future(batcher.submit(windows(i), MEL)) for i in range(6)]
        for number, job in enumerate(jobs):
            job.add_done_callback(lambda _, number=number: done.append(number))  # type: ignore[misc]
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
    model = Clockwork()
    async with batching(model.window_features, in_flight=2, clock=model) as batcher:
        assert batcher.oldest_seconds == 0
        first = await blocked(model, batcher)
        model.now += 500
        second = asyncio.ensure_future(batcher.submit(windows(1), MEL))
        await eventually(lambda: model.calls == 2)
        assert batcher.oldest_seconds == 500
        model.may_run.set()
        await asyncio.gather(first, second)
        assert batcher.oldest_seconds == 0


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
        await eventually(lambda: model.calls == 4)
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
