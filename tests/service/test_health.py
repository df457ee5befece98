"""What a server says of itself: whether it starts, hangs, or lacks something for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from embedder.errors import DownloadFailed, WeightsMismatch, WeightsNotFound
from service import health
from service.app import create_app
from service.decoder import Decoder, DecoderDied
from service.pace import Pace
from service.state import Service
from tests.service_kit import (
    RATE,
    WARM_UP,
    FakeModel,
    eventually,
    fake_app,
    is_ready,
    running,
    service_of,
    settings,
    wav,
)

pytestmark = pytest.mark.anyio
CLIP = wav(RATE)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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


class Shelf(dict[str, FakeModel]):
    """Models that are fetched by `fetch(name)`, however often that fails."""

    def __init__(self, fetch: Callable[[str], FakeModel], *names: str) -> None:
        super().__init__({name: FakeModel() for name in names})
        self.fetched: list[str] = []
        self._fetch = fetch

    def __getitem__(self, name: str) -> FakeModel:
        self.fetched.append(name)
        return self._fetch(name)


def offline() -> DownloadFailed:
    """What a model says whose download failed for want of a network."""
    error = DownloadFailed("no route to the weights")
    error.__cause__ = ConnectionError("no route")
    return error


async def test_a_batch_that_hangs_is_noticed() -> None:
    model = FakeModel()
    app = fake_app(model, hung_seconds=100)
    async with running(app) as client:
        idle = await client.get("/livez")
        assert idle.json() == {"status": "alive", "oldest_batch_seconds": 0}
        model.may_run.clear()
        request = asyncio.ensure_future(client.post("/embed", content=CLIP))
        await eventually(lambda: model.calls == WARM_UP + 1)
        (batch,) = service_of(app).models.loaded["fake"].batcher._running
        batch.since -= 50
        busy = await client.get("/livez")
        assert busy.status_code == 200
        assert 50 <= busy.json()["oldest_batch_seconds"] < 100
        batch.since -= 60
        hung = await client.get("/livez")
        assert (hung.status_code, hung.json()["code"]) == (503, "hung")
        text = (await client.get("/metrics")).text
        (age,) = (
            float(line.split()[1])
            for line in text.splitlines()
            if line.startswith("embedder_oldest_batch_seconds ")
        )
        assert age > 110
        model.may_run.set()
        assert (await request).status_code == 200
        assert (await client.get("/livez")).status_code == 200


async def test_a_model_that_hangs_while_it_warms_up_is_noticed_too() -> None:
    model = FakeModel()
    model.may_run.clear()
    app = fake_app(model, hung_seconds=0.001)
    async with running(app, ready=False) as client:
        await eventually(lambda: model.calls == 1)
        await eventually(lambda: service_of(app).models.hung)
        assert (await client.get("/livez")).status_code == 503
        model.may_run.set()


async def test_a_download_that_fails_is_tried_again_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.models.RETRY_SECONDS", 0.01)
    online = asyncio.Event()

    def fetch(_: str) -> FakeModel:
        if online.is_set():
            return FakeModel()
        raise offline()

    shelf = Shelf(fetch, "fake")
    app = create_app(settings(start_seconds=3600), shelf)
    async with running(app, ready=False) as client:
        await eventually(lambda: len(shelf.fetched) > 3)
        waiting = await client.get("/readyz")
        assert (waiting.status_code, waiting.json()["code"]) == (503, "not_ready")
        assert "cannot be loaded yet" in waiting.json()["detail"]
        assert not service_of(app).fatal
        online.set()
        await eventually(lambda: is_ready(app))
    assert len(complaints(caplog)) == 1
    assert "no route to the weights" in complaints(caplog)[0]


async def test_a_download_that_fails_for_too_long_ends_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.models.RETRY_SECONDS", 0.01)

    def fetch(_: str) -> FakeModel:
        raise offline()

    shelf = Shelf(fetch, "fake")
    app = create_app(settings(start_seconds=0.1), shelf)
    async with running(app, ready=False):
        await eventually(lambda: service_of(app).fatal)
    assert len(shelf.fetched) > 1
    assert [line.startswith("cannot load fake") for line in complaints(caplog)] == [True, True]


@pytest.mark.parametrize(
    "error",
    [
        WeightsMismatch("another hash"),
        WeightsNotFound("no such file"),
        DownloadFailed("a disk that cannot be written to"),
        RuntimeError("no such device"),
    ],
)
async def test_what_cannot_pass_ends_the_server_at_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch(_: str) -> FakeModel:
        raise error

    shelf = Shelf(fetch, "fake")
    app = create_app(settings(start_seconds=3600), shelf)
    async with running(app, ready=False):
        await eventually(lambda: service_of(app).fatal)
    assert shelf.fetched == ["fake"]
    (line,) = complaints(caplog)
    assert str(error) in line


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning or worse."""
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


async def test_of_several_processes_only_those_accept_that_can_serve() -> None:
    model = FakeModel()
    model.may_run.clear()
    app = fake_app(model, workers=2)
    starting = asyncio.ensure_future(service_of(app).start())
    try:
        await eventually(lambda: model.calls == 1)
        await asyncio.sleep(0.2)
        assert not starting.done()  # uvicorn listens when this is over
        model.may_run.set()
        await starting
        assert is_ready(app)
    finally:
        model.may_run.set()
        await service_of(app).close()


@pytest.mark.parametrize("obstacle", ["draining", "model"])
async def test_a_start_that_comes_to_nothing_ends(obstacle: str) -> None:
    def fetch(_: str) -> FakeModel:
        raise WeightsNotFound("none")

    model = FakeModel()
    model.may_run.clear()
    models = {"fake": model} if obstacle == "draining" else Shelf(fetch, "fake")
    service: Service = service_of(create_app(settings(workers=2), models))
    starting = asyncio.ensure_future(service.start())
    service.draining = obstacle == "draining"
    await asyncio.wait_for(starting, 30)
    model.may_run.set()
    await service.close()


async def test_a_server_without_any_decoder_ends_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> Decoder:
        raise DecoderDied("its process ended with exit status 1")

    monkeypatch.setattr(Decoder, "start", fail)
    app = fake_app(decode_workers=3)
    async with running(app, ready=False) as client:
        assert service_of(app).fatal
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


async def test_a_crowd_that_asks_for_a_model_not_yet_loaded_loads_it_once() -> None:
    shelf = Shelf(lambda _: FakeModel(), "fake", "other")
    app = create_app(settings(max_requests=1000), shelf)
    async with running(app) as client:
        crowd = (client.post("/embed?model=other", content=CLIP) for _ in range(300))
        answers = await asyncio.gather(*crowd)
    assert {answer.status_code for answer in answers} == {200}
    assert shelf.fetched == ["fake", "other"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(WeightsNotFound("nothing there"), "weights_not_found"), (RuntimeError("bug"), "not_ready")],
)
async def test_a_further_model_that_failed_is_tried_again_later_not_for_every_request(
    error: Exception, code: str
) -> None:
    broken = True

    def fetch(name: str) -> FakeModel:
        if name == "other" and broken:
            raise error
        return FakeModel()

    shelf = Shelf(fetch, "fake", "other")
    app = create_app(settings(), shelf)
    async with running(app) as client:
        for _ in range(20):
            answer = await client.post("/embed?model=other", content=CLIP)
            assert (answer.status_code, answer.json()["code"]) == (503, code)
            assert int(answer.headers["retry-after"]) == 10
        assert shelf.fetched == ["fake", "other"]
        broken = False
        models = service_of(app).models
        models._refused = {name: (0.0, refusal) for name, (_, refusal) in models._refused.items()}
        assert (await client.post("/embed?model=other", content=CLIP)).status_code == 200


async def test_a_refusal_tells_how_long_all_that_is_held_will_take() -> None:
    model = FakeModel()
    app = fake_app(model, max_requests=4)
    async with running(app) as client:
        served = service_of(app).models.loaded["fake"]
        served.batcher._pace = Pace()
        served.batcher._pace.note(RATE, RATE, 3.0)  # seconds a clip
        model.may_run.clear()
        held = [
            asyncio.ensure_future(client.post("/embed", content=wav(seed=seed)))
            for seed in range(4)
        ]
        await eventually(lambda: service_of(app).pipeline.slots.taken == 4)
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
        pipeline = service_of(app).pipeline
        long = asyncio.ensure_future(client.post("/embed", content=wav(60 * 8000, rate=8000)))
        await eventually(lambda: model.calls == WARM_UP + 1)
        long.cancel()
        await eventually(lambda: pipeline.slots.taken == 0)
        model.may_run.set()
        assert (await client.post("/embed", content=CLIP)).status_code == 200
        assert model.calls == WARM_UP + 2  # the warm-up, what had begun, and this clip
        assert pipeline.slots.taken == pipeline._audio.held == 0
