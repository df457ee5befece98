"""The dynamic batcher, without HTTP and without a network."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from embedder import AudioEmbedder
from service.errors import NonFiniteResult, NotReady, Overloaded
from tests.batching_kit import MEL, batching, blocked, windows
from tests.service_kit import FakeModel, eventually

pytestmark = pytest.mark.anyio


async def test_equal_lengths_of_different_requests_share_a_batch() -> None:
    model = FakeModel()
    async with batching(model.window_features) as batcher:
        first = await blocked(model, batcher)
        values = [float(i) for i in range(5)]
        jobs = [asyncio.ensure_future(batcher.submit(windows(v), MEL)) for v in values]
        await eventually(lambda: batcher.waiting == 5)
        model.may_run.set()
        results = await asyncio.gather(*jobs)
        await first
    assert model.batches == [(1, 3), (5, 100)]
    assert [float(result["mel"][0, 0]) for result in results] == values


async def test_other_lengths_and_other_taps_do_not() -> None:
    model = FakeModel()
    async with batching(model.window_features) as batcher:
        await blocked(model, batcher)
        jobs = [
            asyncio.ensure_future(batcher.submit(windows(1, width=width), taps))
            for width, taps in ((100, MEL), (101, MEL), (100, ("b5",)), (100, MEL))
        ]
        await eventually(lambda: batcher.waiting == 4)
        model.may_run.set()
        results = await asyncio.gather(*jobs)
    assert sorted(model.batches[1:]) == [(1, 100), (1, 101), (2, 100)]
    assert [list(result) for result in results] == [["mel"], ["mel"], ["b5"], ["mel"]]


async def test_a_batch_holds_no_more_than_its_limit_but_always_one_job() -> None:
    model = FakeModel()
    async with batching(model.window_features, max_samples=250) as batcher:
        await blocked(model, batcher)
        jobs = [asyncio.ensure_future(batcher.submit(windows(i), MEL)) for i in range(5)]
        jobs.append(asyncio.ensure_future(batcher.submit(windows(0, count=9), MEL)))
        await eventually(lambda: batcher.waiting == 6)
        model.may_run.set()
        await asyncio.gather(*jobs)
    assert model.batches[1:] == [(2, 100), (2, 100), (1, 100), (9, 100)]


async def test_so_many_batches_are_in_flight_and_no_more() -> None:
    model = FakeModel()
    async with batching(model.window_features, in_flight=2) as batcher:
        first = await blocked(model, batcher)
        second = asyncio.ensure_future(batcher.submit(windows(1), MEL))
        await eventually(lambda: model.calls == 2)
        third = asyncio.ensure_future(batcher.submit(windows(2), MEL))
        await eventually(lambda: batcher.waiting == 1)
        await asyncio.sleep(0.05)
        assert model.calls == 2
        model.may_run.set()
        await asyncio.gather(first, second, third)
    assert model.calls == 3
    assert not batcher.alive


async def test_one_failing_item_fails_only_itself_and_the_worker_lives_on() -> None:
    model = FakeModel()
    model.poison = 2.0
    async with batching(model.window_features) as batcher:
        await blocked(model, batcher)
        jobs = [asyncio.ensure_future(batcher.submit(windows(i), MEL)) for i in range(4)]
        await eventually(lambda: batcher.waiting == 4)
        model.may_run.set()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert [isinstance(result, RuntimeError) for result in results] == [0, 0, 1, 0]
        assert isinstance(results[3], dict)
        assert results[3]["mel"][0, 0] == 3
        assert batcher.alive
        assert (await batcher.submit(windows(7), MEL))["mel"][0, 0] == 7


async def test_a_result_that_is_not_finite_is_an_error_of_its_job_alone() -> None:
    model = FakeModel()
    model.broken = 1.0
    async with batching(model.window_features) as batcher:
        await blocked(model, batcher)
        jobs = [asyncio.ensure_future(batcher.submit(windows(i), MEL)) for i in range(3)]
        await eventually(lambda: batcher.waiting == 3)
        model.may_run.set()
        results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [isinstance(result, NonFiniteResult) for result in results] == [0, 1, 0]


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    model = FakeModel()
    async with batching(model.window_features, max_queue=2) as batcher:
        await blocked(model, batcher)
        jobs = [asyncio.ensure_future(batcher.submit(windows(i), MEL)) for i in range(2)]
        await eventually(lambda: batcher.waiting == 2)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(windows(9), MEL)
        assert int(refused.value.headers["retry-after"]) >= 1
        model.may_run.set()
        await asyncio.gather(*jobs)  # those who wait are served


async def test_a_lone_job_does_not_wait_for_company() -> None:
    model = FakeModel()
    async with batching(model.window_features, max_wait=3600) as batcher:
        await asyncio.wait_for(batcher.submit(windows(1), MEL), 30)
    assert model.batches == [(1, 100)]


async def test_a_job_waits_for_one_that_is_expected_until_it_arrives() -> None:
    model = FakeModel()
    async with batching(model.window_features, max_wait=3600) as batcher:
        with batcher.expecting() as request:
            first = asyncio.ensure_future(batcher.submit(windows(1), MEL))
            await asyncio.sleep(0.05)
            assert not model.batches
            request.arrived()
            await asyncio.gather(first, batcher.submit(windows(2), MEL))
    assert model.batches == [(2, 100)]


async def test_it_waits_no_longer_than_max_wait_and_not_when_full() -> None:
    model = FakeModel()
    async with batching(model.window_features, max_wait=0.02) as batcher:
        with batcher.expecting():
            await asyncio.wait_for(batcher.submit(windows(1), MEL), 30)
    async with batching(model.window_features, max_wait=3600, max_samples=100) as batcher:
        with batcher.expecting():
            await asyncio.wait_for(batcher.submit(windows(1), MEL), 30)
    assert model.batches == [(1, 100), (1, 100)]


async def test_a_cancelled_job_is_not_computed() -> None:
    model = FakeModel()
    async with batching(model.window_features) as batcher:
        await blocked(model, batcher)
        gone = asyncio.ensure_future(batcher.submit(windows(1), MEL))
        stays = asyncio.ensure_future(batcher.submit(windows(2), MEL))
        await eventually(lambda: batcher.waiting == 2)
        gone.cancel()
        model.may_run.set()
        await stays
    assert model.batches[1:] == [(1, 100)]


async def test_closing_fails_what_still_waits_and_refuses_what_comes() -> None:
    model = FakeModel()
    async with batching(model.window_features) as batcher:
        running = await blocked(model, batcher)
        waiting = asyncio.ensure_future(batcher.submit(windows(1), MEL))
        await eventually(lambda: batcher.waiting == 1)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        model.may_run.set()
        await closing
        await running  # the batch in progress is finished
        with pytest.raises(NotReady):
            await waiting
        with pytest.raises(NotReady):
            await batcher.submit(windows(1), MEL)
        assert not batcher.alive


@pytest.mark.parametrize("width", [5120, 40_000])
async def test_alone_or_batched_a_window_has_the_same_features(width: int) -> None:
    model = AudioEmbedder.build("mn01_as")
    clips = torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, (4, width))).float()
    taps = (*model.taps, "tags")
    async with batching(model.window_features, 10 * width, max_wait=3600) as batcher:
        alone = [await batcher.submit(clip[None], taps) for clip in clips]
        with batcher.expecting() as request:
            jobs = [asyncio.ensure_future(batcher.submit(clip[None], taps)) for clip in clips]
            await asyncio.sleep(0)
            request.arrived()
            together = await asyncio.gather(*jobs)
    for one, other in zip(alone, together, strict=True):
        for tap in taps:
            np.testing.assert_allclose(one[tap], other[tap], atol=1e-5, rtol=1e-5)
