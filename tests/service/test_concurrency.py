"""Many requests at once: nobody waits for, pays for or dies with another."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.batching import Batcher
from service.cache import MemoryCache, encode
from tests.service_kit import (
    RATE,
    WARM_UP,
    FakeModel,
    decoder_pids,
    eventually,
    fake_app,
    is_ready,
    running,
    settings,
    state_of,
    wav,
)

pytestmark = pytest.mark.anyio
CLIP = wav(RATE)


async def test_the_event_loop_answers_while_a_decoder_is_stuck() -> None:
    app = fake_app()
    async with running(app) as client:
        (pid,) = decoder_pids(state_of(app).pipeline.decoders)
        os.kill(pid, signal.SIGSTOP)
        request = asyncio.ensure_future(client.post("/embed", content=CLIP))
        await eventually(lambda: state_of(app).pipeline.slots.taken == 1)
        for _ in range(3):
            assert (await client.get("/livez")).status_code == 200
        assert not request.done()
        os.kill(pid, signal.SIGCONT)
        assert (await request).status_code == 200


async def test_the_event_loop_answers_while_the_network_runs() -> None:
    model = FakeModel()
    app = fake_app(model)
    async with running(app) as client:
        model.may_run.clear()
        request = asyncio.ensure_future(client.post("/embed", content=CLIP))
        await eventually(lambda: model.calls == WARM_UP + 1)
        assert (await client.get("/readyz")).status_code == 200
        assert not request.done()
        model.may_run.set()
        assert (await request).status_code == 200


async def test_identical_requests_at_one_time_cost_one_inference() -> None:
    model = FakeModel()
    app = fake_app(model)
    async with running(app) as client:
        model.may_run.clear()
        requests = [asyncio.ensure_future(client.post("/embed", content=CLIP)) for _ in range(8)]
        await eventually(lambda: model.calls == WARM_UP + 1)
        model.may_run.set()
        answers = await asyncio.gather(*requests)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert len(model.batches) == WARM_UP + 1
        await client.post("/embed", content=wav(RATE, seed=5))
        assert len(model.batches) == WARM_UP + 2


async def test_a_client_that_hangs_up_does_not_take_the_others_answer() -> None:
    model = FakeModel()
    app = fake_app(model)
    async with running(app) as client:
        model.may_run.clear()
        first = asyncio.ensure_future(_hanging_up(app, CLIP))
        await eventually(lambda: model.calls == WARM_UP + 1)
        second = asyncio.ensure_future(client.post("/embed", content=CLIP))
        await eventually(lambda: state_of(app).pipeline.single_flight.waiting == 2)
        first.cancel()
        await asyncio.wait({first})
        model.may_run.set()
        assert (await second).status_code == 200
        assert len(model.batches) == WARM_UP + 1


async def _hanging_up(app: FastAPI, body: bytes) -> None:
    """A request whose client disconnects as soon as this task is cancelled."""
    hung_up = asyncio.Event()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        raise AssertionError("nobody is there to be answered")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/embed",
        "raw_path": b"/embed",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-length", str(len(body)).encode())],
    }
    request = asyncio.ensure_future(app(scope, receive, send))
    try:
        await asyncio.shield(request)
    except asyncio.CancelledError:
        hung_up.set()
        await request
        raise


async def test_work_of_a_client_that_hung_up_is_given_up() -> None:
    model = FakeModel()
    app = fake_app(model)
    async with running(app) as client:
        model.may_run.clear()
        busy = asyncio.ensure_future(client.post("/embed", content=CLIP))
        await eventually(lambda: model.calls == WARM_UP + 1)
        gone = asyncio.ensure_future(_hanging_up(app, wav(RATE, seed=9)))
        await eventually(lambda: _batcher(app).waiting == 1)
        gone.cancel()
        await asyncio.wait({gone})
        await eventually(lambda: state_of(app).pipeline.slots.taken == 1)
        model.may_run.set()
        await busy
        assert len(model.batches) == WARM_UP + 1
        assert 'status="499"' in (await client.get("/metrics")).text


def _batcher(app: FastAPI) -> Batcher:
    return state_of(app).models.loaded["fake"].batcher


class NotingCache(MemoryCache):
    """A cache that notes under which keys values were put."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self.keys: list[str] = []

    def put(self, key: str, value: bytes) -> None:
        self.keys.append(key)
        super().put(key, value)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(3), np.zeros((2, 4)), np.full(4, np.nan), np.array([0, 0, 0, np.inf])],
    ids=["length", "dimensions", "NaN", "Inf"],
)
async def test_a_cached_value_that_cannot_be_the_answer_is_a_miss(wrong: np.ndarray) -> None:
    app = fake_app()
    async with running(app) as client:
        state_of(app).pipeline.cache = cache = NotingCache(1 << 20)
        good = (await client.post("/embed", content=CLIP)).json()["embedding"]
        for key in [key for key in cache.keys if key.startswith("embedder:result:")]:
            cache.put(key, encode(wrong.astype(np.float32)))
        again = await client.post("/embed", content=CLIP)
        assert (again.status_code, again.headers["x-cache"]) == (200, "miss")
        assert again.json()["embedding"] == good


async def test_a_full_server_says_429_and_when_to_come_back() -> None:
    model = FakeModel()
    app = fake_app(model, max_requests=2)
    async with running(app) as client:
        await client.post("/embed", content=CLIP)
        model.may_run.clear()
        waiting = [
            asyncio.ensure_future(client.post("/embed", content=wav(RATE, seed=seed)))
            for seed in (1, 2)
        ]
        await eventually(lambda: state_of(app).pipeline.slots.taken == 2)
        refused = await client.post("/embed", content=wav(RATE, seed=3))
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        hit = await client.post("/embed", content=CLIP)  # the cache is never too busy
        assert (hit.status_code, hit.headers["x-cache"]) == (200, "hit")
        model.may_run.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert (await client.post("/embed", content=wav(RATE, seed=3))).status_code == 200


async def test_bodies_are_refused_beyond_the_memory_for_them_and_it_comes_back() -> None:
    model = FakeModel()
    app = fake_app(model, max_memory=100_000)
    async with running(app) as client:
        model.may_run.clear()
        first = asyncio.ensure_future(client.post("/embed", content=CLIP))  # 64 KB
        await eventually(lambda: model.calls == WARM_UP + 1)
        refused = await client.post("/embed", content=wav(RATE, seed=2))
        assert refused.status_code == 429
        model.may_run.set()
        assert (await first).status_code == 200
        assert (await client.post("/embed", content=wav(RATE, seed=2))).status_code == 200
        assert state_of(app).pipeline.uploads.held == 0
        assert state_of(app).pipeline.audio.held == 0


async def test_requests_of_many_clients_share_batches_and_one_bad_file_fails_alone() -> None:
    model = FakeModel()
    app = fake_app(model)
    async with running(app) as client:
        alone = (await client.post("/embed", content=wav(RATE, seed=1))).json()["embedding"]
        state_of(app).pipeline.cache = MemoryCache(1 << 20)
        model.may_run.clear()
        posts = [
            client.post("/embed", content=wav(RATE + seed // 9, seed=seed)) for seed in range(9)
        ]
        requests = [
            asyncio.ensure_future(post) for post in [*posts, client.post("/embed", content=b"?")]
        ]
        await eventually(lambda: model.calls == WARM_UP + 2 and _batcher(app).waiting == 8)
        model.may_run.set()
        answers = await asyncio.gather(*requests)
        assert [answer.status_code for answer in answers] == [*[200] * 9, 415]
        assert answers[1].json()["embedding"] == pytest.approx(alone, abs=1e-5)
        assert model.batches[WARM_UP + 2 :] == [(8, RATE)]


async def test_readiness_follows_the_models_life() -> None:
    model = FakeModel()
    model.may_run.clear()
    app = fake_app(model)
    async with running(app, ready=False) as client:
        loading = await client.get("/readyz")
        assert (loading.status_code, loading.json()["code"]) == (503, "not_ready")
        early = await client.post("/embed", content=CLIP)
        assert (early.status_code, early.json()["code"]) == (503, "not_ready")
        assert (await client.get("/livez")).status_code == 200
        model.may_run.set()
        await eventually(lambda: is_ready(app))
        assert len(model.batches) == WARM_UP  # real forward passes
        assert model.batches[0] == (1, RATE)
        assert (await client.get("/readyz")).status_code == 200
        state_of(app).draining = True
        assert (await client.get("/readyz")).status_code == 503
        state_of(app).draining = False
        await _batcher(app).close()
        assert (await client.get("/readyz")).status_code == 503


async def test_stopping_answers_those_who_wait() -> None:
    model = FakeModel()
    app = fake_app(model)
    async with running(app) as client:
        model.may_run.clear()
        started = asyncio.ensure_future(client.post("/embed", content=CLIP))
        await eventually(lambda: model.calls == WARM_UP + 1)
        waiting = asyncio.ensure_future(client.post("/embed", content=wav(RATE, seed=2)))
        await eventually(lambda: _batcher(app).waiting == 1)
        closing = asyncio.ensure_future(_batcher(app).close())
        await asyncio.sleep(0)
        model.may_run.set()
        await closing
        assert (await started).status_code == 200
        assert (await waiting).json()["code"] == "not_ready"


async def test_further_models_are_loaded_at_their_first_use() -> None:
    other = FakeModel("other")
    app = create_app(settings(), {"fake": FakeModel(), "other": other})
    async with running(app) as client:
        assert "other" not in state_of(app).models.loaded
        requests = [client.post("/embed?model=other", content=wav(RATE, seed=s)) for s in (1, 2)]
        answers = await asyncio.gather(*requests)
        assert [answer.json()["model"] for answer in answers] == ["other", "other"]
        assert other.batches[0] == (1, RATE)
        first = await client.post("/embed", content=wav(RATE, seed=1))
        assert (first.json()["model"], first.headers["x-cache"]) == ("fake", "miss")
