"""Sound files for tests, without an encoder."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def wav_of(samples: NDArray[Any], rate: int = 32_000) -> bytes:
    """Mono 16-bit PCM in a WAV file, of int16 as it is or of floats in [-1, 1]."""
    if samples.dtype != np.int16:
        samples = (np.clip(samples, -1, 1) * 32_767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, rate, 0, "NONE", ""))
        sound.writeframes(samples.tobytes())
    return file.getvalue()


def write_wav(path: Path, samples: NDArray[Any], rate: int = 32_000) -> Path:
    """`wav_of` in a file; makes the folders it needs, returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_of(samples, rate))
    return path
