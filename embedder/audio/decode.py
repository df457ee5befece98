"""Bytes, a path or an open file -> mono float32 at the model's rate.

    source -> packets -> frames -> mono chunks -> model's rate -> blocks

The only decoder and the only resampler of the code base. Whatever comes here is untrusted; what
libav may do with it is in `embedder.audio.libav`.

Damaged files give what can be decoded, as ffmpeg does: a damaged packet is skipped, the sound
after it moves up; a file cut short ends where it was cut. Both are told to `on_damage`, as far as
libav or the header tells, which logs a warning unless it is given.
A file of which nothing decodes is BadAudio.

Axes: C channels, S samples.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from embedder.audio.libav import (
    LIBAV_ERRORS,
    DecodeLimits,
    Meter,
    audio_stream,
    frames,
    keep_if_odd,
    open_container,
)
from embedder.damage import shortfall
from embedder.errors import BadAudio, BadRequest

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

AudioSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
Samples: TypeAlias = NDArray[np.float32]

MAX_AMPLITUDE: Final = 1e4  # full scale is 1; beyond this a log-mel is noise or overflow

_DTYPES: Final[dict[str, np.dtype[Any]]] = {  # of libav's sample formats
    "u8": np.dtype(np.uint8),
    "s16": np.dtype(np.int16),
    "s32": np.dtype(np.int32),  # 24-bit audio comes shifted up to 32
    "flt": np.dtype(np.float32),
    "dbl": np.dtype(np.float64),
}
_ZERO_AND_FULL_SCALE: Final = {
    np.dtype(np.uint8): (128.0, 128.0),
    np.dtype(np.int16): (0.0, 2.0**15),
    np.dtype(np.int32): (0.0, 2.0**31),
    np.dtype(np.float32): (0.0, 1.0),
    np.dtype(np.float64): (0.0, 1.0),
}
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_TOO_MANY_PLANES: Final = 8  # from here on PyAV reads beyond a planar frame's planes
SHORT_BLOCK_SECONDS: Final = 1.0  # blocks that are still in the caches when they are joined
_CHUNK: Final = 1 << 16  # samples converted at once: single frames are too small for numpy
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
    some blocks.

    Yields
    ------
    NDArray[float32], shape [block_seconds * sample_rate], the last one shorter
        Concatenated, exactly what `load_audio` returns.
    """
    if not (sample_rate > 0 and 1 <= block_seconds * sample_rate < math.inf):
        raise BadRequest(
            f"cannot make blocks of {block_seconds} s at {sample_rate} Hz; use positive numbers"
        )
    with _opened(source) as file, open_container(file, limits) as container:
        meter = Meter(limits)
        stream = audio_stream(container)
        decoded = frames(container, stream, meter)
        chunks = _mono_chunks(decoded)
        yielded = 0
        for samples in _blocks(_resampled(chunks, sample_rate), round(block_seconds * sample_rate)):
            yielded += samples.size
            paused = time.monotonic()
            yield samples
            meter.deadline += time.monotonic() - paused
        lost = (meter.report(yielded), shortfall(file, container, stream, meter.seconds))
        if any(lost):
            (on_damage or _log.warning)("; ".join(filter(None, lost)))


def resample(samples: Samples, rate: int, target: int) -> Samples:
    """Mono samples [S] at another rate: float32 [about S * target / rate], as files are decoded."""
    return np.concatenate(list(_resampled([(rate, samples)], target)))


def check_samples(samples: NDArray[Any]) -> None:
    """Raise BadAudio unless these are samples that a model can take.

    Parameters
    ----------
    samples : NDArray of any shape
        Must be floating point, not empty, finite, and within +-MAX_AMPLITUDE.
    """
    if samples.dtype.kind != "f":
        raise BadAudio(f"samples are {samples.dtype}; give floats in [-1, 1] (int16: x / 32768)")
    if not samples.size:
        raise BadAudio("no samples; give at least one")
    check_peak(max(-float(samples.min()), float(samples.max())))  # min and max propagate NaN


def check_peak(peak: float) -> None:
    """Raise BadAudio unless the largest magnitude is finite and within MAX_AMPLITUDE."""
    if not math.isfinite(peak):
        raise BadAudio(f"samples contain {peak}; NaN and Inf cannot be embedded")
    if peak > MAX_AMPLITUDE:
        raise BadAudio(f"samples reach {peak:g}; scale them to [-1, 1]")


@contextmanager
def _opened(source: AudioSource) -> Iterator[BinaryIO]:
    """The source as a binary file; closed again if it was opened here."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(bytes(source))
    elif isinstance(source, str | os.PathLike):
        if _URL.match(os.fspath(source)):
            raise BadAudio(f"{source!r} is a URL, and none is fetched; download it, give its path")
        with _open_path(Path(source)) as file:
            yield file
    elif hasattr(source, "read") and hasattr(source, "seek") and not hasattr(source, "encoding"):
        if getattr(source, "closed", False):
            raise BadRequest("the audio file is closed; open it, or give its path")
        yield source
    else:
        kind = type(source).__name__
        raise BadRequest(f"cannot read audio from a {kind}; give a path, bytes or a binary file")


def _open_path(path: Path) -> BinaryIO:
    try:
        if path.is_file():  # a named pipe would block, a device never end
            return path.open("rb")
        reason = "it is not a regular file" if path.exists() else "no such file"
    except OSError as error:
        raise BadAudio(f"cannot open {str(path)!r}: {error.strerror}") from error
    raise BadAudio(f"cannot open {str(path)!r}: {reason}")


_frame_kind = attrgetter("sample_rate", "layout.nb_channels", "format.name")


def _mono_chunks(frames: Iterable[AudioFrame]) -> Iterator[tuple[int, Samples]]:
    """Pairs of sample rate and mono samples; any of a frame's kind may change on the way."""
    for (rate, channels, form), run in groupby(frames, key=_frame_kind):
        many_planes = channels >= _TOO_MANY_PLANES and form.endswith("p")
        for batch in _batches(_packed(run) if many_planes else run):
            yield rate, _mono(batch, channels)


def _packed(frames: Iterable[AudioFrame]) -> Iterator[AudioFrame]:
    """Planar frames of one kind with their channels interleaved."""
    resampler = None
    try:
        for frame in frames:
            resampler = resampler or av.AudioResampler(format=frame.format.packed)
            for packed in resampler.resample(frame):
                keep_if_odd(packed.layout)
                yield packed
    except LIBAV_ERRORS as error:
        raise BadAudio("too many channels or an odd layout; mix down to stereo") from error


def _batches(frames: Iterable[AudioFrame]) -> Iterator[list[NDArray[Any]]]:
    """Frames of one kind as arrays, gathered to about _CHUNK samples over all channels."""
    batch: list[NDArray[Any]] = []
    size = 0
    for frame in frames:
        batch.append(_samples(frame))
        size += batch[-1].size
        if size >= _CHUNK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _samples(frame: AudioFrame) -> NDArray[Any]:
    """A frame's samples as `to_ndarray` gives them, without its copies: they cost a third."""
    form = frame.format
    count = frame.samples if form.is_planar else frame.samples * frame.layout.nb_channels
    dtype = _DTYPES[form.packed.name]
    buffers: tuple[Any, ...] = frame.planes
    planes = [np.frombuffer(buffer, dtype, count) for buffer in buffers]
    return planes[0][None] if len(planes) == 1 else np.stack(planes)


def _mono(batch: list[NDArray[Any]], channels: int) -> Samples:
    samples = np.concatenate(batch, axis=1)  # planar: C S; packed: 1 S*C
    if samples.shape[0] != channels:
        samples = samples.reshape(-1, channels).T  # 1 S*C -> C S
    if samples.dtype.kind == "f":
        check_samples(samples)
    zero, full = _ZERO_AND_FULL_SCALE[samples.dtype]
    mono: Samples = samples[0].astype(np.float32)
    for channel in samples[1:]:  # ten times faster than mean() over interleaved channels
        mono += channel
    if channels > 1:
        mono /= np.float32(channels)
    if zero:
        mono -= np.float32(zero)
    mono /= np.float32(full)
    return mono


def _resampled(chunks: Iterable[tuple[int, Samples]], target: int) -> Iterator[Samples]:
    for rate, run in groupby(chunks, key=itemgetter(0)):
        mono = (samples for _, samples in run)
        yield from mono if rate == target else _resampled_run(mono, rate, target)


def _resampled_run(mono: Iterable[Samples], rate: int, target: int) -> Iterator[Samples]:
    resampler = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    for samples in mono:
        yield resampler.resample_chunk(samples)
    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)  # the filter's tail


def _blocks(pieces: Iterable[Samples], block: int) -> Iterator[Samples]:
    """The same samples, cut into blocks of `block`; the last may be shorter, none is empty."""
    held: list[Samples] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += piece.size
        if size >= block:
            joined = np.concatenate(held)
            whole = size - size % block
            yield from joined[:whole].reshape(-1, block)
            held, size = [joined[whole:]], size - whole
    if size:
        yield np.concatenate(held)
