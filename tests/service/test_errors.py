"""Whatever a client sends, it gets an answer that says what to do; never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedder.errors import EmbedderError, WeightsNotFound
from embedder.process import available_cores
from service.__main__ import serve
from service.app import create_app
from service.errors import STATUS
from service.settings import Settings
from tests.service_kit import (
    RATE,
    FakeModel,
    client_of,
    fake_app,
    is_ready,
    live,
    running,
    settings,
    state_of,
    wav,
)
from tests.shared import SHARED

CLIP = wav(RATE // 10)
BAD = sorted((SHARED / "audio/bad").glob("*")) if SHARED.is_dir() else []
HEADERS_OF_FORM = {"content-type": "multipart/form-data; boundary=X"}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    app = fake_app(max_windows=100, max_windows_seconds=50, max_bytes=2_000_000)
    with live(app) as port, client_of(port) as client:
        yield client


def subclasses(error: type[Any]) -> Iterator[type[Any]]:
    yield error
    for child in error.__subclasses__():
        yield from subclasses(child)


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["title"]
    assert body["detail"]


def test_every_error_has_a_status_and_a_code_of_its_own() -> None:
    served = ("embedder.", "service.")
    tree = {error for error in subclasses(EmbedderError) if error.__module__.startswith(served)}
    assert tree == set(STATUS)
    assert len({error.code for error in tree}) == len(tree)
    assert all(400 <= status < 600 for status in STATUS.values())


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.name)
def test_hostile_files_are_the_clients_fault(client: httpx.Client, path: Path) -> None:
    data = path.read_bytes()
    for response in (
        client.post("/embed", files={"file": (path.name, data)}),
        client.post("/tags", content=data),
    ):
        assert response.status_code in (200, 413, 415, 422), response.text
        if response.status_code != 200:
            assert_problem(response, response.status_code, response.json()["code"])
            assert str(path.parent) not in response.text
        json.loads(response.content, parse_constant=pytest.fail)  # no NaN
    assert client.post("/embed", content=CLIP).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "code"),
    [
        ("GET", "/nowhere", b"", {}, 404, "not_found"),
        ("GET", "/embed", b"", {}, 405, "method_not_allowed"),
        ("POST", "/embed", b"", {}, 422, "bad_audio"),
        ("POST", "/embed?model=nose", CLIP, {}, 404, "unknown_model"),
        ("POST", "/embed?kind=nose", CLIP, {}, 422, "invalid_request"),
        ("POST", "/embed?windows_ms=5", CLIP, {}, 422, "invalid_request"),
        ("POST", "/embed?window_ms=nan", CLIP, {}, 422, "invalid_request"),
        ("POST", "/embed?window_ms=0", CLIP, {}, 422, "invalid_request"),
        ("POST", "/embed?window_ms=60001", CLIP, {}, 400, "bad_request"),
        ("POST", "/embed?hop_ms=1e9", CLIP, {}, 400, "bad_request"),
        ("POST", "/embed?taps=", CLIP, {}, 400, "unknown_tap"),
        ("POST", "/tags?top_k=0", CLIP, {}, 422, "invalid_request"),
        ("POST", "/timestamps?hop_ms=1", wav(RATE), {}, 413, "too_much_work"),
        ("POST", "/timestamps?window_ms=60000", CLIP, {}, 413, "too_much_work"),
        ("POST", "/embed", b"\0" * 2_000_001, {}, 413, "audio_too_large"),
        ("POST", "/embed", b"\0" * 2_100_000, {}, 413, "body_too_large"),
        ("POST", "/embed", b"--X\r\nnonsense", HEADERS_OF_FORM, 400, "bad_request"),
        ("POST", "/embed", b"--X--\r\n", HEADERS_OF_FORM, 400, "bad_request"),
        ("POST", "/embed", CLIP, {"content-type": "multipart/form-data"}, 400, "bad_request"),
    ],
)
def test_each_mistake_has_its_code(
    client: httpx.Client,
    method: str,
    path: str,
    content: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    response = client.request(method, path, content=content, headers=headers)
    assert_problem(response, status, code)
    assert "server-timing" in response.headers


def test_a_form_needs_one_file_in_its_field(client: httpx.Client) -> None:
    assert client.post("/embed", files={"file": CLIP}).status_code == 200
    other = client.post("/embed", files={"sound": CLIP})
    assert_problem(other, 400, "bad_request")
    assert "'file'" in other.json()["detail"]
    assert_problem(client.post("/embed", data={"file": "text"}), 415, "unsupported_audio")
    two = client.post("/embed", files=[("file", CLIP), ("file", CLIP)])
    assert_problem(two, 400, "bad_request")


def test_a_chunked_body_is_limited_too(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(100_000)

    assert_problem(client.post("/embed", content=endless()), 413, "body_too_large")


@pytest.mark.anyio
async def test_a_key_is_asked_for_where_one_is_set() -> None:
    app = fake_app(api_key="sesame")
    async with running(app) as client:
        for path in ("/embed", "/tags", "/timestamps", "/events"):
            assert_problem(await client.post(path, content=CLIP), 401, "unauthorized")
        assert_problem(await client.get("/info"), 401, "unauthorized")
        for path in ("/v1/models", "/v1/models/fake"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/v1/embeddings", content=CLIP)).status_code == 401
        for path in ("/livez", "/readyz", "/metrics", "/", "/docs"):
            assert (await client.get(path)).status_code == 200
        for wrong in ("Bearer simsalabim", "Basic sesame", "Bearer ", "sesame", "Bearer söse"):
            headers = {b"authorization": wrong.encode()}
            refused = await client.post("/embed", content=CLIP, headers=headers)
            assert_problem(refused, 401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
        headers = {b"authorization": b"Bearer sesame"}
        assert (await client.post("/embed", content=CLIP, headers=headers)).status_code == 200


@pytest.mark.anyio
async def test_a_bug_of_ours_is_a_500_that_tells_nothing() -> None:
    model = FakeModel()
    app = fake_app(model)
    async with running(app) as client:
        model.poison = 0.0
        response = await client.post("/embed", content=wav(1)[:-2] + b"\0\0")
        assert_problem(response, 500, "internal_error")
        assert "poison" not in response.text
        model.poison = None
        assert (await client.post("/embed", content=CLIP)).status_code == 200


@pytest.mark.anyio
async def test_a_result_that_is_not_finite_is_neither_sent_nor_kept() -> None:
    model = FakeModel()
    app = fake_app(model)
    silence = wav(1)[:-2] + b"\0\0"
    async with running(app) as client:
        model.broken = 0.0
        for _ in range(2):
            response = await client.post("/embed", content=silence)
            assert_problem(response, 422, "non_finite_result")
        model.broken = None
        response = await client.post("/embed", content=silence)
        assert (response.status_code, response.headers["x-cache"]) == (200, "miss")


@pytest.mark.anyio
async def test_a_missing_checkpoint_is_503_everywhere_and_tells_no_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings(weights=tmp_path / "none.pt", model="mn01_as"))
    async with running(app, ready=False) as client:
        while not state_of(app).models.failure:
            assert (await client.get("/livez")).status_code == 200
        for response in (await client.get("/readyz"), await client.post("/embed", content=CLIP)):
            assert_problem(response, 503, "not_ready")
            assert str(tmp_path) not in response.text
            assert response.headers["retry-after"] == "5"
    assert str(tmp_path) in caplog.text
    assert not is_ready(app)


@pytest.mark.anyio
async def test_a_further_model_that_cannot_be_loaded_is_503_and_tells_no_path() -> None:
    class Missing(dict[str, FakeModel]):
        def __getitem__(self, name: str) -> FakeModel:
            if name == "missing":
                raise WeightsNotFound("nothing at /secret/weights.pt")
            return super().__getitem__(name)

    app = create_app(settings(), Missing(fake=FakeModel(), missing=FakeModel()))
    async with running(app) as client:
        for _ in range(2):
            response = await client.post("/embed?model=missing", content=CLIP)
            assert_problem(response, 503, "weights_not_found")
            assert "secret" not in response.text
        assert (await client.post("/embed", content=CLIP)).status_code == 200


def test_an_unknown_model_is_refused_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EmbedderError, match="nose"):
        create_app(settings(model="nose"))
    with pytest.raises(EmbedderError, match="ear"):
        create_app(settings(models="mn10_as, ear"))
    assert serve(settings(model="nose")) == 2
    assert "no model 'nose'" in caplog.text


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_MODEL", "mn10_as")
    monkeypatch.setenv("EMBEDDER_MODELS", "mn04_as, mn05_as")
    monkeypatch.setenv("EMBEDDER_WEIGHTS_DIR", "not ours, and ignored")
    monkeypatch.setenv("EMBEDDER_API_KEY", "sesame")
    chosen = Settings()
    assert (chosen.model, chosen.models) == ("mn10_as", ("mn04_as", "mn05_as"))
    assert "sesame" not in repr(chosen)
    assert chosen.threads_of_worker == available_cores() >= 1
    shared = chosen.model_copy(update={"workers": 2 * available_cores()})
    assert shared.threads_of_worker == 1
