"""Sounds of a known shape, in every container and codec."""

from __future__ import annotations

import io
import wave
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

RATE = 32_000


def sine(seconds: float, rate: int, hz: float = 1000.0, amplitude: float = 0.5) -> NDArray[Any]:
    """A mono sine, shape [1, S]."""
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)[None]


def pcm(samples: NDArray[Any], rate: int) -> bytes:
    """Integer samples, shape [C, S], as WAV; written by the standard library, not by libav."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(samples.shape[0])
        out.setsampwidth(samples.itemsize)
        out.setframerate(rate)
        out.writeframes(np.ascontiguousarray(samples.T).tobytes())
    return file.getvalue()


def wav(samples: NDArray[Any], rate: int) -> bytes:
    return pcm(np.round(samples * 32_767).astype(np.int16), rate)


def encoded(samples: NDArray[Any], rate: int, container: str, codec: str) -> bytes:
    """Float samples, shape [C, S], through libav's encoder."""
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 8: "7.1"}[samples.shape[0]]
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = layout
        stream.bit_rate = 96_000  # of the lossy ones
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        interleaved = samples.T.astype(np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
        frame.sample_rate = rate
        for piece in (*resampler.resample(frame), None):
            out.mux(stream.encode(piece))
    return file.getvalue()


ENCODINGS = {  # container, codec, rate
    "wav": ("wav", "pcm_s16le", 16_000),
    "float wav": ("wav", "pcm_f32le", 16_000),
    "aiff": ("aiff", "pcm_s16be", 16_000),
    "flac": ("flac", "flac", 16_000),
    "mp3": ("mp3", "mp3", 16_000),
    "opus": ("ogg", "libopus", 48_000),
    "m4a": ("mp4", "aac", 16_000),
    "alac": ("mp4", "alac", 16_000),
    "webm": ("webm", "libopus", 48_000),
    "wma": ("asf", "wmav2", 44_100),
}


def fit_sine(samples: NDArray[Any], rate: int, hz: float) -> tuple[float, float]:
    """Amplitude of the best sine of that frequency, and RMS of what it leaves."""
    phase = 2 * np.pi * hz * np.arange(samples.size) / rate
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    weights, *_ = np.linalg.lstsq(basis, samples.astype(np.float64), rcond=None)
    return float(np.hypot(*weights)), float(np.std(samples - basis @ weights))
