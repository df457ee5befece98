"""Small sounds and a tiny model for tests of the command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from embedder import testing
from embedder.model import AudioEmbedder
from embedder.testing import write_wav
from tests.threads import one_thread

MODEL = "mn01_as"
RATE = 32_000


@contextmanager
def tiny_model(name: str = MODEL) -> Iterator[AudioEmbedder]:
    """Random weights, the same every time; one thread."""
    with one_thread():
        yield testing.tiny_model(name)


def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the caller's EMBEDDER_ variables; one worker, no GPU, no colours."""
    for variable in [name for name in os.environ if name.startswith("EMBEDDER_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("EMBEDDER_DECODE_WORKERS", "1")
    monkeypatch.setenv("EMBEDDER_DEVICE", "cpu")
    monkeypatch.setenv("TERM", "dumb")


def write_weights(model: AudioEmbedder, path: Path) -> Path:
    torch.save(model.backbone.state_dict(), path)
    return path


def noise(seconds: float, seed: int = 0) -> NDArray[np.int16]:
    n_samples = round(seconds * RATE)
    return (np.random.default_rng(seed).normal(0, 0.1, n_samples) * 32_767).astype(np.int16)


def write_float_wav(path: Path, samples: NDArray[Any], rate: int = RATE) -> Path:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout="mono")
        for start in range(0, len(samples), RATE):
            block = samples[None, start : start + RATE].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_noises(folder: Path, seconds: Iterable[float]) -> list[Path]:
    """One WAV a length, named in order."""
    return [
        write_wav(folder / f"{index:03d}.wav", noise(length, index))
        for index, length in enumerate(seconds)
    ]


def rows(table: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(table).to_pylist())
