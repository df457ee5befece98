"""POST /events gives Python's events, through the same guards, batches and cache."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from embedder import AudioEmbedder, load_audio
from embedder.testing import wav_bytes
from service.app import create_app
from tests.detector_kit import NAME, RATE, bursts, lively_detector
from tests.service_kit import FakeModel, client_of, live, settings


def sound(seconds: float, seed: int = 0) -> bytes:
    pcm = np.clip(bursts(seconds, seed).numpy(), -1, 1) * 32_767
    return wav_bytes(pcm.astype(np.int16), RATE)


@pytest.fixture(scope="module")
def model() -> Iterator[AudioEmbedder]:
    with lively_detector() as built:
        yield built


@pytest.fixture(scope="module")
def client(model: AudioEmbedder) -> Iterator[httpx.Client]:
    app = create_app(settings(), {NAME: model, "fake": FakeModel()})
    with live(app) as port, client_of(port) as client:
        yield client


def expected(model: AudioEmbedder, data: bytes, **rules: Any) -> list[dict[str, Any]]:
    [events] = model.events(load_audio(data, RATE), **rules)
    return [
        {
            "label": event.label,
            "onset": pytest.approx(event.onset_s, abs=6e-4),
            "offset": pytest.approx(event.offset_s, abs=6e-4),
            "score": pytest.approx(event.score, abs=6e-4),
        }
        for event in events
    ]


@pytest.mark.parametrize("seconds", [0.05, 12.0])
def test_events_are_pythons(client: httpx.Client, model: AudioEmbedder, seconds: float) -> None:
    data = sound(seconds)
    response = client.post("/events", files={"file": data})
    assert (response.headers["x-model"], response.headers["x-cache"]) == (NAME, "miss")
    body = response.json()
    assert body.pop("events") == expected(model, data)
    assert body == {"model": NAME, "seconds": seconds, "cached": False}


def test_other_options_need_no_new_inference(client: httpx.Client, model: AudioEmbedder) -> None:
    data = sound(3.0, seed=5)
    first = client.post("/events", content=data)
    rules = {"threshold": 0.7, "median": 5, "min_duration_ms": 80, "merge_gap_ms": 120}
    again = client.post("/events", params=rules, content=data)
    assert [answer.headers["x-cache"] for answer in (first, again)] == ["miss", "hit"]
    assert first.json()["events"] == expected(model, data)
    assert again.json()["events"] == expected(model, data, **rules)
    assert len(first.json()["events"]) > len(again.json()["events"]) > 0


def test_probabilities_as_npy_and_npz(client: httpx.Client, model: AudioEmbedder) -> None:
    data = sound(11.0, seed=6)
    values, ms = model.frame_probabilities(load_audio(data, RATE))
    answers = [
        client.post("/events", content=data, headers={"accept": f"application/x-{form}"})
        for form in ("npy", "npz")
    ]
    plain, named = (np.load(io.BytesIO(answer.content)) for answer in answers)
    np.testing.assert_allclose(plain, values[0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(named["probabilities"], plain)
    np.testing.assert_array_equal(named["timestamps_ms"], ms[0].numpy())


def test_a_model_without_frames_names_those_with(client: httpx.Client) -> None:
    response = client.post("/events?model=fake", content=sound(0.1))
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert f"choose one of {NAME}" in response.json()["detail"]
    assert "fmn" not in response.json()["detail"].replace(NAME, "")


def test_a_server_without_such_models_says_how_to_serve_one() -> None:
    models = {"fake": FakeModel(), "other": FakeModel()}
    with live(create_app(settings(), models)) as port, client_of(port) as client:
        for query in ("", "?model=other"):
            response = client.post(f"/events{query}", content=sound(0.1))
            assert (response.status_code, response.json()["code"]) == (400, "bad_request")
            assert "EMBEDDER_MODELS=fmn" in response.json()["detail"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("threshold=0", 422),
        ("threshold=1.5", 422),
        ("median=4", 400),
        ("merge_gap_ms=-1", 422),
        ("min_duration_ms=nan", 422),
        ("kind=scene", 422),
        ("model=banana", 404),
    ],
)
def test_options_that_make_no_sense(client: httpx.Client, query: str, status: int) -> None:
    assert client.post(f"/events?{query}", content=sound(0.1)).status_code == status


def test_the_guard_is_the_same(model: AudioEmbedder) -> None:
    app = create_app(settings(api_key="secret"), {NAME: model})
    with live(app) as port, client_of(port) as stranger:
        assert stranger.post("/events", content=sound(0.1)).status_code == 401
