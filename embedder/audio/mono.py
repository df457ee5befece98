"""libav's frames as mono float32, whatever their sample format and number of channels.

Axes: C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from embedder.audio.libav import LIBAV_ERRORS, keep_if_odd
from embedder.audio.samples import Samples, check_samples
from embedder.errors import BadAudio

_DTYPES: Final[dict[str, np.dtype[Any]]] = {  # by the name of libav's sample format
    "u8": np.dtype(np.uint8),
    "s16": np.dtype(np.int16),
    "s32": np.dtype(np.int32),  # libav shifts 24-bit audio up to 32 bits
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
_TOO_MANY_PLANES: Final = 8  # with this many or more, PyAV reads beyond a planar frame's planes
_CHUNK: Final = 1 << 16  # samples converted at once: single frames are too small for numpy
_frame_kind = attrgetter("sample_rate", "layout.nb_channels", "format.name")


def mono_chunks(frames: Iterable[AudioFrame]) -> Iterator[tuple[int, Samples]]:
    """Frames -> pairs of sample rate and mono samples [S], the mean of the channels.

    Rate, channels and format may change from one frame to the next.

    Raises
    ------
    BadAudio : samples are not finite or absurdly large, or the channels cannot be separated.
    """
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
    """Frames of one kind as arrays, in lists of about _CHUNK samples over all channels."""
    batch: list[NDArray[Any]] = []
    size = 0
    for frame in frames:
        batch.append(_array(frame))
        size += batch[-1].size
        if size >= _CHUNK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _array(frame: AudioFrame) -> NDArray[Any]:
    """A frame's samples, planar [C, S] or packed [1, S C].

    PyAV's `to_ndarray` gives the same, but makes copies that take a third of the time.
    """
    form = frame.format
    count = frame.samples if form.is_planar else frame.samples * frame.layout.nb_channels
    dtype = _DTYPES[form.packed.name]
    buffers: tuple[Any, ...] = frame.planes
    planes = [np.frombuffer(buffer, dtype, count) for buffer in buffers]
    return planes[0][None] if len(planes) == 1 else np.stack(planes)


def _mono(batch: list[NDArray[Any]], channels: int) -> Samples:
    """Arrays of one kind as one [S]: the mean of the channels, full scale at 1."""
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
