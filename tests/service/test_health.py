"""What a server says of itself: whether it hangs, refuses, or has no decoder."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from service import health
from service.batching import Batcher
from service.decoder import Decoder, DecoderDied
from tests.batching_kit import Clockwork
from tests.service_kit import (
    RATE,
    WARM_UP,
    FakeModel,
    eventually,
    fake_app,
    running,
    state_of,
    wav,
)
from tests.shelf import complaints

pytestmark = pytest.mark.anyio
CLIP = wav(RATE)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (None, "http://127.0.0.1:8000/readyz"),
        ("0.0.0.0", "http://127.0.0.1:8000/readyz"),
        ("::", "http://[::1]:8000/readyz"),
        ("10.1.2.3", "http://10.1.2.3:8000/readyz"),
    ],
)
def test_a_container_asks_where_its_server_listens(
    host: str | None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMBEDDER_PORT", raising=False)
    monkeypatch.delenv("EMBEDDER_HOST", raising=False)
    if host is not None:
        monkeypatch.setenv("EMBEDDER_HOST", host)
    assert health.url() == url


async def test_a_batch_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    now = [0.0]
    monkeypatch.setattr("service.models.Batcher", partial(Batcher, clock=lambda: now[0]))
    app = fake_app(model, hung_seconds=100)
    async with running(app) as client:
        idle = await client.get("/livez")
        assert idle.json() == {"status": "alive", "oldest_batch_seconds": 0}
        model.may_run.clear()
        request = asyncio.ensure_future(client.post("/embed", content=CLIP))
        await eventually(lambda: model.calls == WARM_UP + 1)
        now[0] = 50
        busy = await client.get("/livez")
        assert busy.status_code == 200
        assert busy.json()["oldest_batch_seconds"] == 50
        now[0] = 110
        hung = await client.get("/livez")
        assert (hung.status_code, hung.json()["code"]) == (503, "hung")
        text = (await client.get("/metrics")).text
        (age,) = (
            float(line.split()[1])
            for line in text.splitlines()
            if line.startswith("embedder_oldest_batch_seconds ")
        )
        assert age == 110
        model.may_run.set()
        assert (await request).status_code == 200
        assert (await client.get("/livez")).status_code == 200


async def test_a_model_that_hangs_while_it_warms_up_is_noticed_too() -> None:
    model = FakeModel()
    model.may_run.clear()
    app = fake_app(model, hung_seconds=0.001)
    async with running(app, ready=False) as client:
        await eventually(lambda: model.calls == 1)
        await eventually(lambda: state_of(app).models.hung)
        assert (await client.get("/livez")).status_code == 503
        model.may_run.set()


async def test_a_server_without_any_decoder_ends_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> Decoder:
        raise DecoderDied("its process ended with exit status 1")

    monkeypatch.setattr(Decoder, "start", fail)
    app = fake_app(decode_workers=3)
    async with running(app, ready=False) as client:
        assert state_of(app).fatal
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert "decoder" in answer.json()["detail"]
    (line,) = complaints(caplog)
    assert "exit status 1" in line


async def test_a_decoder_that_cannot_start_is_a_503_and_the_next_request_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> Decoder:
        raise DecoderDied("its process ended with exit status 1")

    app = fake_app(decode_jobs=1)
    async with running(app) as client:
        assert (await client.post("/embed", content=wav(seed=1))).status_code == 200
        with monkeypatch.context() as broken:
            broken.setattr(Decoder, "start", fail)
            for seed in (2, 3, 4):
                answer = await client.post("/embed", content=wav(seed=seed))
                assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
                assert int(answer.headers["retry-after"]) >= 1
        assert (await client.post("/embed", content=wav(seed=2))).status_code == 200


async def test_a_refusal_tells_how_long_all_that_is_held_will_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Clockwork(3.0 / RATE)  # seconds a clip
    monkeypatch.setattr("service.models.Batcher", partial(Batcher, clock=model))
    app = fake_app(model, max_requests=4)
    async with running(app) as client:
        served = state_of(app).models.loaded["fake"]
        model.may_run.clear()
        held = [
            asyncio.ensure_future(client.post("/embed", content=wav(seed=seed)))
            for seed in range(4)
        ]
        await eventually(lambda: state_of(app).pipeline.slots.taken == 4)
        await eventually(lambda: served.batcher.waiting == 3)
        refused = await client.post("/embed", content=wav(seed=9))
        assert refused.status_code == 429
        assert 6 <= int(refused.headers["retry-after"]) <= 24  # four clips at 3 s each
        model.may_run.set()
        await asyncio.gather(*held)


async def test_what_a_long_clip_of_a_client_that_left_still_needs_is_not_computed() -> None:
    model = FakeModel()
    app = fake_app(model, max_batch_seconds=10)
    async with running(app) as client:
        model.may_run.clear()
        pipeline = state_of(app).pipeline
        long = asyncio.ensure_future(client.post("/embed", content=wav(60 * 8000, rate=8000)))
        await eventually(lambda: model.calls == WARM_UP + 1)
        long.cancel()
        await eventually(lambda: pipeline.slots.taken == 0)
        model.may_run.set()
        assert (await client.post("/embed", content=CLIP)).status_code == 200
        assert model.calls == WARM_UP + 2  # the warm-up, what had begun, and this clip
        assert pipeline.slots.taken == pipeline.audio.held == 0
