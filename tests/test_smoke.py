"""The installed commands, as a newcomer calls them: a tag, and an embedding over HTTP."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from embedder import AudioEmbedder, load_audio
from tests.service_kit import client_of, free_port

COMMAND = str(Path(sysconfig.get_path("scripts")) / "embedder")
RATE = 32_000


def environment() -> dict[str, str]:
    """The caller's, without settings of the command."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDER_")}


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """Two seconds of concert pitch in FLAC, which libav decodes in every build."""
    path = tmp_path / "tone.flac"
    wave = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE) * 16_000
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave.astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    """A client of `embedder serve` with the default model."""
    port = free_port()
    command = [COMMAND, "serve", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, env=environment()) as process:
        try:
            with client_of(port) as client:
                _await_ready(client, process)
                yield client
        finally:
            process.terminate()


def _await_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not get ready"
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)


def test_the_command_hears_a_sine_wave(tone: Path) -> None:
    done = subprocess.run(
        [COMMAND, "tag", str(tone), "--top", "1"],
        cwd=tone.parent,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Sine wave" in done.stdout


def test_the_server_embeds_as_python_does(tone: Path) -> None:
    model = AudioEmbedder.load("sprout04", device="cpu")
    expected = model.scene(load_audio(tone, model.sample_rate))[0]
    with served(tone.parent) as client:
        answer = client.post("/embed", files={"file": tone.read_bytes()})
    assert answer.status_code == 200, answer.text
    vector: NDArray[np.float64] = np.array(answer.json()["embedding"])
    assert np.linalg.norm(vector) > 1  # not zeros
    np.testing.assert_allclose(vector, expected, rtol=1e-3, atol=1e-4)
