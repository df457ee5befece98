"""What OpenAI's clients send and read, with audio for text."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from embedder import AudioEmbedder, load_audio
from service.schemas import OpenAIError
from tests.service_kit import RATE, client_of, fake_app, live, wav

CLIP = wav(RATE, seed=1)
PLAIN = base64.b64encode(CLIP).decode()


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-5, rtol=1e-5)


def audio() -> np.ndarray:
    return load_audio(CLIP, RATE)


def test_openai_clients_get_what_they_expect(client: httpx.Client, model: AudioEmbedder) -> None:
    lines = "\r\n".join(PLAIN[i : i + 76] for i in range(0, len(PLAIN), 76))
    url_safe = PLAIN.replace("+", "-").replace("/", "_")
    inputs = [PLAIN, f"data:audio/wav;base64,{PLAIN}", lines, url_safe]
    request = {"model": "mn01_as", "input": inputs}
    body = client.post("/v1/embeddings", json=request).json()
    assert (body["object"], body["model"]) == ("list", "mn01_as")
    assert [item["index"] for item in body["data"]] == [0, 1, 2, 3]
    assert body["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    for item in body["data"]:
        close(item["embedding"], model.scene(audio())[0])
    request = {"model": "mn01_as", "input": PLAIN, "encoding_format": "base64"}
    packed = client.post("/v1/embeddings", json=request).json()["data"][0]["embedding"]
    close(np.frombuffer(base64.b64decode(packed), "<f4"), model.scene(audio())[0])


@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        ({"input": "https://example.org/a.wav"}, 400, "bad_request"),
        ({"input": "not base64!"}, 400, "bad_request"),
        ({"input": "data:audio/wav,abc"}, 400, "bad_request"),
        ({"input": base64.b64encode(b"no audio").decode()}, 415, "unsupported_audio"),
        ({"input": PLAIN, "model": "gpt"}, 404, "unknown_model"),
        ({"input": PLAIN, "dimensions": 3}, 400, "bad_request"),
        ({"input": ["aaaa"] * 33}, 400, "bad_request"),
        ({"input": PLAIN, "taps": "nose"}, 400, "unknown_tap"),
        ({"input": PLAIN, "taps": ["mel", "nose"]}, 400, "unknown_tap"),
        ({"input": "a\u00e9=="}, 400, "bad_request"),
        ({"input": []}, 422, "invalid_request"),
        ({"input": 1}, 422, "invalid_request"),
        ({"input": [PLAIN, 1, 2]}, 422, "invalid_request"),
        ({"input": [[1, 2]]}, 422, "invalid_request"),
        ({"input": PLAIN, "taps": []}, 422, "invalid_request"),
        ({"input": PLAIN, "taps": ["t" * 99_999]}, 422, "invalid_request"),
        ({"input": PLAIN, "taps": {"mel": 1}}, 422, "invalid_request"),
        ({"input": PLAIN, "dimension": 3}, 422, "invalid_request"),
        ({"inputs": PLAIN}, 422, "invalid_request"),
        ([PLAIN], 422, "invalid_request"),
    ],
)
def test_openai_clients_errors(
    client: httpx.Client, request_body: Any, status: int, code: str
) -> None:
    assert_error(client.post("/v1/embeddings", json=request_body), status, code)


def assert_error(response: httpx.Response, status: int, code: str) -> str:
    """The error's message."""
    assert response.headers["content-type"] == "application/json"
    error = OpenAIError.model_validate_json(response.content).error
    assert (response.status_code, error.code) == (status, code)
    assert error.message
    return error.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"NaN", b'{"input": 1e999}', b"[" * 900 + b"]" * 900 + b"x", b"9" * 9999],
)
def test_what_is_no_json(client: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = client.post("/v1/embeddings", content=body, headers=headers)
    assert_error(response, 400, "invalid_json")


def test_errors_of_every_layer_have_the_form(client: httpx.Client) -> None:
    assert_error(client.get("/v1/nowhere"), 404, "not_found")
    assert_error(client.get("/v1/embeddings"), 405, "method_not_allowed")
    packed = client.post("/v1/embeddings", content=b"x", headers={"content-encoding": "gzip"})
    assert_error(packed, 415, "unsupported_encoding")
    form = client.post("/v1/embeddings", files={"file": CLIP})
    assert "POST /embed" in assert_error(form, 400, "bad_request")
    limited = fake_app(api_key="sesame", max_json_bytes=10)
    with live(limited) as port, client_of(port) as other:
        locked = other.post("/v1/embeddings", json={})
        assert_error(locked, 401, "unauthorized")
        assert locked.headers["www-authenticate"] == "Bearer"
        headers = {"authorization": "Bearer sesame"}
        large = other.post("/v1/embeddings", content=bytes(20), headers=headers)
        assert_error(large, 413, "body_too_large")


def test_the_option_at_fault_is_named(client: httpx.Client) -> None:
    response = client.post("/v1/embeddings", json={"input": PLAIN, "encoding_format": "hex"})
    assert response.json()["error"]["param"] == "encoding_format"
    listed = client.post("/v1/embeddings", json={"input": [PLAIN, 1]})
    assert listed.json()["error"]["param"] == "input"
    near = client.post("/v1/embeddings", json={"input": PLAIN, "dimension": 3})
    assert "choose from dimensions" in assert_error(near, 422, "invalid_request")


def test_taps_and_dimensions(client: httpx.Client, model: AudioEmbedder) -> None:
    expected = model.join(model.features(audio(), taps=["clf1", "mel"]), ["clf1", "mel"])[0]
    for taps in ("clf1,mel", ["clf1", "mel"]):
        request = {"input": PLAIN, "taps": taps, "dimensions": len(expected)}
        body = client.post("/v1/embeddings", json=request).json()
        close(body["data"][0]["embedding"], expected)
    refused = client.post("/v1/embeddings", json={"input": PLAIN, "taps": "mel", "dimensions": 7})
    message = assert_error(refused, 400, "bad_request")
    assert f"mel {model.tap_sizes['mel']}" in message
    assert f"clf1 {model.tap_sizes['clf1']}" in message


def test_one_model(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert client.get(f"/v1/models/{listed[0]['id']}").json() == listed[0]
    assert_error(client.get("/v1/models/nose"), 404, "unknown_model")


@pytest.mark.parametrize(
    "values",
    [b"1," * 200_000, b"[]," * 100_000, b"{}," * 100_000, b'"",' * 100_000, b'"a":1,' * 50_000],
)
def test_many_values_are_refused_before_any_is_made(
    client: httpx.Client, values: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.openai.orjson.loads", pytest.fail)
    body = b'{"input": [' + values + b"1]}"
    response = client.post("/v1/embeddings", content=body)
    assert "32 clips" in assert_error(response, 400, "bad_request")


def test_of_many_wrong_values_the_first_is_told(client: httpx.Client) -> None:
    response = client.post("/v1/embeddings", json={"input": [1] * 32})
    assert_error(response, 422, "invalid_request")
    assert len(response.content) < 400


@pytest.mark.parametrize("request_body", [{"n" * 100_000: 1}, {"input": PLAIN, "model": "m" * 300}])
def test_long_names_are_not_compared(
    client: httpx.Client, request_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def near(name: str, *_: Any, **__: Any) -> list[str]:
        compared.append(len(name))
        return []

    monkeypatch.setattr("service.schemas.get_close_matches", near)
    monkeypatch.setattr("embedder.errors.get_close_matches", near)
    response = client.post("/v1/embeddings", json=request_body)
    assert len(assert_error(response, 422, "invalid_request")) < 300
    assert all(length <= 40 for length in compared)
