"""What OpenAI's clients send and read, with audio for text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from embedder import AudioEmbedder, load_audio
from service.app import create_app
from service.schemas import OpenAIError
from tests.service_kit import RATE, client_of, fake_app, live, settings, wav

CLIP = wav(RATE, seed=1)
PLAIN = base64.b64encode(CLIP).decode()


@pytest.fixture(scope="module")
def model() -> AudioEmbedder:
    return AudioEmbedder.build("mn01_as")


@pytest.fixture(scope="module")
def client(model: AudioEmbedder) -> Iterator[httpx.Client]:
    app = create_app(settings(), {"mn01_as": model})
    with live(app) as port, client_of(port) as client:
        yield client


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-5, rtol=1e-5)


def audio() -> np.ndarray:
    return load_audio(CLIP, RATE)


def test_openai_clients_get_what_they_expect(client: httpx.Client, model: AudioEmbedder) -> None:
    plain = base64.b64encode(CLIP).decode()
    request = {"model": "mn01_as", "input": [plain, f"data:audio/wav;base64,{plain}"]}
    body = client.post("/v1/embeddings", json=request).json()
    assert (body["object"], body["model"]) == ("list", "mn01_as")
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert body["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    for item in body["data"]:
        close(item["embedding"], model.scene(audio())[0])
    request = {"model": "mn01_as", "input": plain, "encoding_format": "base64"}
    packed = client.post("/v1/embeddings", json=request).json()["data"][0]["embedding"]
    close(np.frombuffer(base64.b64decode(packed), "<f4"), model.scene(audio())[0])


@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        ({"input": "https://example.org/a.wav"}, 400, "bad_request"),
        ({"input": "not base64!"}, 400, "bad_request"),
        ({"input": "data:audio/wav,abc"}, 400, "bad_request"),
        ({"input": base64.b64encode(b"no audio").decode()}, 415, "unsupported_audio"),
        ({"input": base64.b64encode(CLIP).decode(), "model": "gpt"}, 404, "unknown_model"),
        ({"input": base64.b64encode(CLIP).decode(), "dimensions": 3}, 400, "bad_request"),
        ({"input": ["aaaa"] * 33}, 400, "bad_request"),
        ({"input": []}, 422, "invalid_request"),
        ({"input": 1}, 422, "invalid_request"),
    ],
)
def test_openai_clients_errors(
    client: httpx.Client, request_body: dict[str, Any], status: int, code: str
) -> None:
    response = client.post("/v1/embeddings", json=request_body)
    assert (response.status_code, response.json()["code"]) == (status, code)
    garbage = client.post(
        "/v1/embeddings", content="{", headers={"content-type": "application/json"}
    )
    assert (garbage.status_code, garbage.json()["code"]) == (400, "invalid_json")
