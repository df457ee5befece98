"""Models that are loaded late, again, or never."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from embedder.errors import DownloadFailed, WeightsMismatch, WeightsNotFound
from service.app import create_app
from service.state import Service
from tests.service_kit import (
    RATE,
    FakeModel,
    eventually,
    fake_app,
    is_ready,
    running,
    settings,
    state_of,
    wav,
)
from tests.shelf import Shelf, complaints, offline

pytestmark = pytest.mark.anyio
CLIP = wav(RATE)


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
        assert not state_of(app).fatal
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
        await eventually(lambda: state_of(app).fatal)
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
        await eventually(lambda: state_of(app).fatal)
    assert shelf.fetched == ["fake"]
    (line,) = complaints(caplog)
    assert str(error) in line


async def test_of_several_processes_only_those_accept_that_can_serve() -> None:
    model = FakeModel()
    model.may_run.clear()
    app = fake_app(model, workers=2)
    starting = asyncio.ensure_future(state_of(app).start())
    try:
        await eventually(lambda: model.calls == 1)
        await asyncio.sleep(0.2)
        assert not starting.done()  # uvicorn listens when this is over
        model.may_run.set()
        await starting
        assert is_ready(app)
    finally:
        model.may_run.set()
        await state_of(app).close()


@pytest.mark.parametrize("obstacle", ["draining", "model"])
async def test_a_start_that_comes_to_nothing_ends(obstacle: str) -> None:
    def fetch(_: str) -> FakeModel:
        raise WeightsNotFound("none")

    model = FakeModel()
    model.may_run.clear()
    models = {"fake": model} if obstacle == "draining" else Shelf(fetch, "fake")
    service: Service = state_of(create_app(settings(workers=2), models))
    starting = asyncio.ensure_future(service.start())
    service.draining = obstacle == "draining"
    await asyncio.wait_for(starting, 30)
    model.may_run.set()
    await service.close()


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
    error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
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
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600)
        monkeypatch.setattr("service.models.time", later)
        assert (await client.post("/embed?model=other", content=CLIP)).status_code == 200
