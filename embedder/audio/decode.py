"""Bytes, a path or an open file -> mono float32 at the model's rate.

    source ── packets ── frames ── mono chunks ── model's rate ── blocks
    sources   libav      libav     mono           samples         samples

This is the only decoder of the code base. Whatever it is given is untrusted; what libav may do
with it is in `embedder.audio.libav`.

A damaged file gives what can be decoded, as with ffmpeg: a damaged packet is skipped, and the sound
after it moves up; a file that was cut short ends where it was cut. As far as libav or the header
tells, `on_damage` is told of both; without it, a warning is logged. A file of which nothing decodes
is BadAudio.

Axes: S samples.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from embedder.audio.libav import DecodeLimits, Meter, audio_stream, frames, open_container
from embedder.audio.mono import mono_chunks
from embedder.audio.samples import (
    Samples,
    blocks,
    check_peak,
    check_samples,
    resample,
    resampled,
)
from embedder.audio.sources import AudioSource, opened
from embedder.damage import shortfall
from embedder.errors import BadRequest

__all__ = [
    "HTTP_LIMITS",
    "OPEN_LIMITS",
    "SHORT_BLOCK_SECONDS",
    "AudioSource",
    "DecodeLimits",
    "Samples",
    "check_peak",
    "check_samples",
    "load_audio",
    "resample",
    "stream_audio",
]

SHORT_BLOCK_SECONDS: Final = 1.0  # blocks that are still in the caches when they are joined
_log = logging.getLogger(__name__)

HTTP_LIMITS: Final = DecodeLimits(
    max_seconds=600,
    max_samples=600 * 96_000 * 2,
    max_bytes=50_000_000,
    max_wall_seconds=10,
)
OPEN_LIMITS: Final = DecodeLimits(max_seconds=14 * 24 * 3600)  # for people's own files


def load_audio(
    source: AudioSource, sample_rate: int, limits: DecodeLimits = OPEN_LIMITS
) -> Samples:
    """Decode a whole source: `stream_audio` in one array.

    Parameters
    ----------
    source : path, bytes, or a seekable binary file (read from its start, left open)
    sample_rate : int
        Rate of the result in Hz.
    limits : DecodeLimits

    Returns
    -------
    NDArray[float32], shape [S]
        Mean of the channels, finite, full scale at 1 (louder is kept, not clipped). S is at least
        1 and the source's duration times `sample_rate`, rounded.

    Raises
    ------
    BadAudio
        No such file, nothing decodes, NaN or Inf, absurd rate or amplitude.
    UnsupportedAudio
        No audio stream in a container and codec that we accept.
    AudioTooLarge
        Over one of the limits.
    BadRequest
        `sample_rate` is not positive.
    """
    return np.concatenate(list(stream_audio(source, sample_rate, limits, SHORT_BLOCK_SECONDS)))


def stream_audio(
    source: AudioSource,
    sample_rate: int,
    limits: DecodeLimits = OPEN_LIMITS,
    block_seconds: float = 10.0,
    on_damage: Callable[[str], None] | None = None,
) -> Iterator[Samples]:
    """Decode a source block by block, in memory that does not grow with its length.

    Parameters and errors are those of `load_audio`; errors come while iterating, possibly after
    some blocks. After the last block, `on_damage` is told what is missing, if anything is.

    Yields
    ------
    NDArray[float32], shape [block_seconds * sample_rate], the last one shorter
        Concatenated, exactly what `load_audio` returns.
    """
    if not (sample_rate > 0 and 1 <= block_seconds * sample_rate < math.inf):
        raise BadRequest(
            f"cannot make blocks of {block_seconds} s at {sample_rate} Hz; use positive numbers"
        )
    with opened(source) as file, open_container(file, limits) as container:
        meter = Meter(limits)
        stream = audio_stream(container)
        chunks = mono_chunks(frames(container, stream, meter))
        yielded = 0
        for block in blocks(resampled(chunks, sample_rate), round(block_seconds * sample_rate)):
            yielded += block.size
            paused = time.monotonic()
            yield block
            meter.deadline += time.monotonic() - paused  # the reader's time does not count
        damage = (meter.report(yielded), shortfall(file, container, stream, meter.seconds))
        if any(damage):
            (on_damage or _log.warning)("; ".join(filter(None, damage)))
