"""A real server on loopback: curl, slow clients, a real redis, the published checkpoint."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from embedder import AudioEmbedder, load_audio
from embedder.testing import wav_bytes
from service.app import create_app
from service.protocol import BoundedHttp
from tests.redis_kit import needs_redis, redis_server
from tests.service_kit import (
    RATE,
    FakeModel,
    client_of,
    connected,
    everything,
    fake_app,
    free_port,
    live,
    settings,
    until,
    wav,
)
from tests.shared import SHARED, needs_shared

CHECKPOINT = SHARED / "weights/mn04_as_mAP_432.pt"
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the path")


def curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-sS", *arguments], check=True, capture_output=True)
    return json.loads(done.stdout)


@needs_shared
@needs_curl
def test_curl_gets_pythons_numbers_from_the_published_checkpoint(tmp_path: Path) -> None:
    with np.load(SHARED / "golden/audio_32k.npz") as golden:
        metro = golden["pcm_metro"]
    sound = tmp_path / "metro.wav"
    sound.write_bytes(wav_bytes(metro))
    model = AudioEmbedder.load("mn04_as", weights=CHECKPOINT, device="cpu")
    audio = load_audio(sound, model.sample_rate)
    app = create_app(settings(model="mn04_as", weights=CHECKPOINT, device="cpu"))
    with live(app) as port:
        url = f"http://127.0.0.1:{port}"
        body = curl("-F", f"file=@{sound}", f"{url}/embed")
        np.testing.assert_allclose(body["embedding"], model.scene(audio)[0], atol=1e-5)
        tags = {
            tag["label"]: tag["score"]
            for tag in curl("-F", f"file=@{sound}", f"{url}/tags?top_k=4")["tags"]
        }
    scores = model.tags(audio)[0].tolist()
    assert tags == pytest.approx({name: scores[model.labels.index(name)] for name in tags})
    expected = {"Train": 0.73, "Rail transport": 0.58, "Railroad car, train wagon": 0.56}
    for name, score in {**expected, "Subway, metro, underground": 0.49}.items():
        assert tags[name] == pytest.approx(score, abs=0.01)


@needs_redis
def test_redis_keeps_results_and_its_death_loses_no_request(tmp_path: Path) -> None:
    port = free_port()
    model = FakeModel()
    changes = {"redis_url": f"redis://127.0.0.1:{port}/0"}
    clips = [wav(RATE, seed=seed) for seed in range(6)]
    with redis_server(tmp_path, port) as process:
        with live(fake_app(model, **changes)) as first, client_of(first) as client:
            assert _ask(client, clips[0]) == "miss"
            until(lambda: _ask(client, clips[0]), "hit")
        # Another server of the same model finds it there.
        with live(fake_app(model, **changes)) as second, client_of(second) as client:
            assert _ask(client, clips[0]) == "hit"
            kept = client.post("/embed", content=clips[0]).json()["embedding"]
            process.send_signal(signal.SIGSTOP)  # accepts, but never answers
            assert {_ask(client, clip) for clip in clips} == {"bypass"}
            process.kill()
            process.wait()
            assert {_ask(client, clip) for clip in clips} == {"bypass"}
            computed = client.post("/embed", content=clips[0]).json()["embedding"]
            assert computed == pytest.approx(kept, abs=1e-6)
            with redis_server(tmp_path, port):
                until(lambda: _ask(client, clips[1]), "hit")


@needs_redis
def test_a_damaged_value_in_redis_is_a_miss(tmp_path: Path) -> None:
    port = free_port()
    model = FakeModel()
    with (
        redis_server(tmp_path, port),
        redis.Redis(port=port) as store,
        live(fake_app(model, redis_url=f"redis://127.0.0.1:{port}/0")) as served,
        client_of(served) as client,
    ):
        clip = wav(RATE)
        good = client.post("/embed", content=clip).json()["embedding"]
        until(lambda: len(store.keys("embedder:*")), 2)
        for key in store.keys("embedder:*"):
            assert 0.89 < store.ttl(key) / (7 * 24 * 3600) < 1.11
        damages = {b"", b"junk", b"EMBV\1\1\1\0junkjunk"}
        for damage in damages:
            for key in store.keys("embedder:*"):
                store.set(key, damage)
            answer = client.post("/embed", content=clip)
            assert (answer.status_code, answer.headers["x-cache"]) == (200, "miss")
            assert answer.json()["embedding"] == good
            until(lambda: damages.isdisjoint(map(store.get, store.keys("embedder:*"))), True)


def _ask(client: httpx.Client, clip: bytes) -> str:
    response = client.post("/embed", content=clip)
    assert response.status_code == 200
    state: str = response.headers["x-cache"]
    return state


def test_a_body_that_does_not_arrive_is_ended_with_408() -> None:
    with live(fake_app(body_seconds=0.2)) as port:
        with connected(port) as slow:
            slow.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\nRIFF")
            answer = everything(slow)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"body_timeout"' in answer
        with client_of(port) as client:
            assert client.get("/readyz").status_code == 200


def test_a_body_that_has_arrived_is_computed_for_as_long_as_it_takes() -> None:
    model = FakeModel()
    with live(fake_app(model, body_seconds=1)) as port, client_of(port) as client:
        model.may_run.clear()
        end = threading.Timer(1.5, model.may_run.set)
        end.start()
        assert client.post("/embed", content=wav()).status_code == 200
        end.join()


def test_a_head_that_does_not_arrive_is_ended() -> None:
    class Hasty(BoundedHttp):
        head_seconds = 0.2

    with live(fake_app(), Hasty) as port:
        for start in (b"", b"POST /embed HTTP/1.1\r\nhost: x\r\nx-a:"):
            with connected(port) as slow:
                slow.sendall(start)
                assert everything(slow) == b""
        with connected(port) as patient:
            patient.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert patient.recv(1000).startswith(b"HTTP/1.1 200")
            time.sleep(0.4)  # between requests another clock runs
            patient.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert patient.recv(1000).startswith(b"HTTP/1.1 200")
            patient.sendall(b"GET /livez HTT")
            assert everything(patient) == b""


def test_an_answer_that_needs_no_body_reaches_who_still_sends_it() -> None:
    with live(fake_app(api_key="sesame", body_seconds=30)) as port:
        with connected(port) as small:
            small.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\nRIFF")
            time.sleep(0.1)
            small.sendall(b"RIFF")
            answer = small.recv(65536)
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" not in answer
            small.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert small.recv(65536).startswith(b"HTTP/1.1 200")
        with connected(port) as large:
            large.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\nRIFF")
            answer = everything(large)  # does not wait for nine megabytes
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in answer


def _everything(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received
