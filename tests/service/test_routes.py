"""The HTTP surface over a small model with random weights."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest

from embedder import AudioEmbedder, load_audio
from service.app import create_app
from service.negotiation import best_format
from tests.service_kit import RATE, settings, wav

CLIP = wav(RATE, seed=1)
LONG = wav(12 * RATE, seed=2)


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-5, rtol=1e-5)


def audio(data: bytes = CLIP) -> np.ndarray:
    return load_audio(data, RATE)


@pytest.mark.parametrize("data", [CLIP, LONG], ids=["1 s", "12 s"])
def test_embed_gives_pythons_numbers(
    client: httpx.Client, model: AudioEmbedder, data: bytes
) -> None:
    body = client.post("/embed", files={"file": data}).json()
    close(body.pop("embedding"), model.scene(audio(data))[0])
    assert body == {
        "model": "mn01_as",
        "kind": "scene",
        "seconds": len(audio(data)) / RATE,
        "cached": False,
        "size": model.scene_embedding_size,
    }


@pytest.mark.parametrize(("window_ms", "hop_ms"), [(160, 50), (400, 333.3)])
def test_timestamps_give_pythons_numbers_and_milliseconds(
    client: httpx.Client, model: AudioEmbedder, window_ms: float, hop_ms: float
) -> None:
    options: Any = {"kind": "timestamps", "window_ms": window_ms, "hop_ms": hop_ms}
    body = client.post("/embed", params=options, content=CLIP).json()
    vectors, ms = model.timestamps(audio(), window_ms=window_ms, hop_ms=hop_ms)
    close(body["embedding"], vectors[0])
    assert body["timestamps_ms"] == ms[0].tolist()
    assert (body["window_ms"], body["hop_ms"]) == (window_ms, hop_ms)


def test_the_alias_and_its_defaults(client: httpx.Client, model: AudioEmbedder) -> None:
    body = client.post("/timestamps", content=CLIP).json()
    close(body["embedding"], model.timestamps(audio()).vectors[0])
    assert client.post("/timestamps?kind=scene", content=CLIP).status_code == 422


def test_long_answers_are_the_same_in_pieces(client: httpx.Client, model: AudioEmbedder) -> None:
    response = client.post("/timestamps", params={"hop_ms": 10}, content=LONG)
    assert "content-length" not in response.headers
    close(response.json()["embedding"], model.timestamps(audio(LONG), hop_ms=10).vectors[0])


@pytest.mark.parametrize("data", [CLIP, LONG], ids=["1 s", "12 s"])
def test_tags_give_pythons_numbers(client: httpx.Client, model: AudioEmbedder, data: bytes) -> None:
    body = client.post("/tags", params={"top_k": 3}, files={"file": data}).json()
    scores = model.tags(audio(data))[0]
    best = scores.topk(3)
    assert [tag["index"] for tag in body["tags"]] == best.indices.tolist()
    assert [tag["label"] for tag in body["tags"]] == [model.labels[i] for i in best.indices]
    close([tag["score"] for tag in body["tags"]], best.values)


def test_tags_of_every_window(client: httpx.Client, model: AudioEmbedder) -> None:
    options: Any = {"kind": "timestamps", "top_k": 527}
    body = client.post("/tags", params=options, content=LONG).json()
    scores, ms = model.window_tags(audio(LONG))
    assert [window["ms"] for window in body["windows"]] == ms[0].tolist()
    ours = [
        [tag["score"] for tag in sorted(window["tags"], key=lambda tag: tag["index"])]
        for window in body["windows"]
    ]
    close(ours, scores[0])
    whole = client.post("/tags?kind=timestamps", content=CLIP).json()
    assert [window["ms"] for window in whole["windows"]] == [500.0]


def test_chosen_taps_in_the_callers_order(client: httpx.Client, model: AudioEmbedder) -> None:
    body = client.post("/embed?taps=clf1,mel", content=CLIP).json()
    features = model.features(audio(), taps=["clf1", "mel"])
    close(body["embedding"], model.join(features, ["clf1", "mel"])[0])
    unknown = client.post("/embed?taps=mel,nose", content=CLIP)
    assert (unknown.status_code, unknown.json()["code"]) == (400, "unknown_tap")
    repeated = client.post(f"/embed?taps={','.join(['mel'] * 1000)}", content=CLIP)
    assert (repeated.status_code, repeated.json()["code"]) == (400, "bad_request")
    assert "'mel' is named 1000 times" in repeated.json()["detail"]


def test_npy_and_npz(client: httpx.Client, model: AudioEmbedder) -> None:
    headers = {"accept": "application/x-npy"}
    response = client.post("/embed", content=CLIP, headers=headers)
    assert response.headers["content-type"] == "application/x-npy"
    scene = np.load(io.BytesIO(response.content))
    assert scene.dtype == np.float32
    close(scene, model.scene(audio())[0])
    tags = np.load(io.BytesIO(client.post("/tags", content=CLIP, headers=headers).content))
    close(tags, model.tags(audio())[0])
    headers = {"accept": "application/x-npz"}
    with np.load(
        io.BytesIO(client.post("/timestamps", content=CLIP, headers=headers).content)
    ) as archive:
        vectors, ms = model.timestamps(audio())
        close(archive["embedding"], vectors[0])
        assert archive["timestamps_ms"].tolist() == ms[0].tolist()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("application/x-npy", "application/x-npy"),
        ("Application/X-NPZ ; q=0.5, application/json;q=0.4", "application/x-npz"),
        ("application/json;q=0, */*", "application/x-npy"),
    ],
)
def test_the_best_format(accept: str | None, expected: str) -> None:
    assert best_format(accept) == expected


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "application/x-npy;q=x"])
def test_what_cannot_be_made_is_406(client: httpx.Client, accept: str) -> None:
    response = client.post("/embed", content=CLIP, headers={"accept": accept})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")


def test_form_and_raw_body_and_second_time_are_one_entry(client: httpx.Client) -> None:
    data = wav(RATE, seed=10)
    answers = [
        client.post("/embed", files={"file": ("a.wav", data, "audio/wav")}),
        client.post("/embed", content=data),
        client.post("/embed", content=data, headers={"content-type": "audio/wav"}),
    ]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit", "hit"]
    bodies = [answer.json() for answer in answers]
    assert [body.pop("cached") for body in bodies] == [False, True, True]
    assert bodies[0] == bodies[1] == bodies[2]


def test_another_container_of_the_same_samples_shares_the_result(client: httpx.Client) -> None:
    data = wav(RATE, seed=11)
    padded = data[:36] + b"junk" + (4).to_bytes(4, "little") + b"\0\0\0\0" + data[36:]
    answers = [client.post("/tags", content=sound) for sound in (data, padded, padded)]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit", "hit"]
    first, second, _ = (answer.json()["tags"] for answer in answers)
    assert first == second
    stages = [answer.headers["server-timing"] for answer in answers]
    # The second was decoded to be known, the third was known by its bytes.
    assert ["decode" in one for one in stages] == [True, True, False]
    assert ["infer" in one for one in stages] == [True, False, False]


def test_clips_of_equal_length_never_share_an_entry(client: httpx.Client) -> None:
    clips = [wav(RATE, seed=seed) for seed in range(20, 24)]
    assert len({len(clip) for clip in clips}) == 1
    first, again = (
        [client.post("/embed", content=clip).json()["embedding"] for clip in clips] for _ in "12"
    )
    assert first == again
    assert len(set(map(tuple, first))) == len(clips)


def test_every_option_has_an_entry_of_its_own(client: httpx.Client) -> None:
    data = wav(RATE, seed=30)
    questions = [
        "/embed",
        "/embed?window_ms=500&hop_ms=100",
        "/embed?window_ms=500&hop_ms=200",
        "/embed?window_ms=400&hop_ms=200",
        "/embed?taps=mel",
        "/embed?kind=timestamps",
        "/tags",
        "/tags?kind=timestamps",
    ]
    assert [client.post(q, content=data).headers["x-cache"] for q in questions] == ["miss"] * 8
    assert client.post("/tags?top_k=1", content=data).headers["x-cache"] == "hit"


def test_models_and_info(client: httpx.Client, model: AudioEmbedder) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["default"], card["loaded"]) for card in listed] == [
        ("mn01_as", True, True)
    ]
    info = client.get("/info").json()
    assert info["models"][0]["sample_rate"] == RATE
    assert info["models"][0]["taps"] == list(model.taps)
    assert info["limits"]["max_bytes"] == 50_000_000
    assert info["cache"] == "memory"


def test_health_metrics_and_times(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    client.post("/embed", content=wav(RATE, seed=40))
    text = client.get("/metrics").text
    assert 'embedder_requests_total{method="POST",route="/embed",status="200"}' in text
    assert 'embedder_cache_total{outcome="miss"}' in text
    assert "embedder_batch_windows_count" in text
    client.get("/nowhere/at/all")
    assert 'route="/nowhere' not in client.get("/metrics").text
    answer = client.post("/embed", content=wav(RATE, seed=41))
    stages = [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["decode", "infer", "total"]
    assert client.get("/nowhere").headers["server-timing"].startswith("total;dur=")


def test_pages_need_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    docs = client.get("/docs")
    for text in (page.text, docs.text):
        assert "//" not in text.replace(str(client.base_url), "").replace("// ", "")
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert asset in docs.text
        assert client.get(f"/static-offline-docs/{asset}").status_code == 200


def test_the_schema_names_every_route_and_error(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/embed",
        "/timestamps",
        "/tags",
        "/events",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{model}",
        "/livez",
        "/readyz",
        "/metrics",
        "/info",
    }
    embed = schema["paths"]["/embed"]["post"]
    assert {"200", "400", "401", "404", "406", "413", "415", "422", "429", "503"} <= set(
        embed["responses"]
    )
    assert set(embed["requestBody"]["content"]) == {
        "multipart/form-data",
        "audio/*",
        "application/octet-stream",
    }
    for path, form, media_type in (
        ("/embed", "Problem", "application/problem+json"),
        ("/v1/embeddings", "OpenAIError", "application/json"),
    ):
        for status, answer in schema["paths"][path]["post"]["responses"].items():
            if status != "200":
                reference = {"$ref": f"#/components/schemas/{form}"}
                assert answer["content"] == {media_type: {"schema": reference}}
        assert form in schema["components"]["schemas"]
    body = schema["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]
    name = body["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert "dimensions" in schema["components"]["schemas"][name]["properties"]
    names = {parameter["name"] for parameter in embed["parameters"]}
    assert names == {"kind", "model", "window_ms", "hop_ms", "taps"}


def test_the_schema_asks_for_a_key_where_the_server_does(model: AudioEmbedder) -> None:
    open_schema, locked_schema = (
        create_app(settings(**changes), {"mn01_as": model}).openapi()
        for changes in ({}, {"api_keys": ("open", "sesame")})
    )
    assert "securitySchemes" not in open_schema["components"]
    assert locked_schema["components"]["securitySchemes"]["APIKey"]["scheme"] == "bearer"
    locked = {
        path
        for path, methods in locked_schema["paths"].items()
        if all("security" in operation for operation in methods.values())
    }
    assert locked == set(locked_schema["paths"]) - {"/livez", "/readyz", "/metrics"}
