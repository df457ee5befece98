"""Small sounds and a tiny model for tests: the same at every call, and nothing is downloaded.

For programs that build on this package, and for its own tests. `service.testing` has an
application and a client of it in memory.
"""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from embedder.audio.decode import Samples
from embedder.model import AudioEmbedder

SAMPLE_RATE: Final = 32_000
"""Hertz of `tiny_model`, and of every sound here unless another rate is named."""
_FULL_SCALE: Final = 32_767


def sine(
    seconds: float = 1.0,
    hertz: float = 440.0,
    amplitude: float = 0.5,
    sample_rate: int = SAMPLE_RATE,
) -> Samples:
    """A pure tone [S], float32."""
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    return (amplitude * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def noise(
    seconds: float = 1.0,
    seed: int = 0,
    deviation: float = 0.1,
    sample_rate: int = SAMPLE_RATE,
) -> Samples:
    """Gaussian noise [S], float32; every seed sounds different."""
    n_samples = round(seconds * sample_rate)
    return np.random.default_rng(seed).normal(0, deviation, n_samples).astype(np.float32)


def wav_bytes(samples: NDArray[Any], sample_rate: int = SAMPLE_RATE) -> bytes:
    """A WAV file of 16 bits, mono, from int16 as it is or from floats in [-1, 1]."""
    if samples.dtype != np.int16:
        samples = (np.clip(samples, -1, 1) * _FULL_SCALE).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, sample_rate, 0, "NONE", ""))
        sound.writeframes(samples.tobytes())
    return file.getvalue()


def write_wav(
    path: str | os.PathLike[str], samples: NDArray[Any], sample_rate: int = SAMPLE_RATE
) -> Path:
    """Write `wav_bytes` into a file, make the folders it needs, and return its path."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(wav_bytes(samples, sample_rate))
    return file


def tiny_model(name: str = "mn01_as", seed: int = 0) -> AudioEmbedder:
    """The architecture of a published model with weights drawn from a seed, on the CPU.

    The default is the smallest of all, and computes a second of sound in milliseconds. Its
    answers have the sizes, labels and features of the published model, and differ from sound to
    sound, but mean nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AudioEmbedder.build(name)
        _settle(model)
    return model


@torch.no_grad()
def _settle(model: AudioEmbedder) -> None:
    """Give the norms the statistics of two sounds: without, random layers fade to nothing."""
    rate = model.sample_rate
    waves = np.stack([sine(1.0, sample_rate=rate), noise(1.0, sample_rate=rate)])
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model.backbone(model.frontend(torch.from_numpy(waves)))
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
