"""Bytes, a path or an open file -> mono float32 at the model's rate.

    source -> packets -> frames -> mono chunks -> model's rate -> blocks

The only decoder and the only resampler of the code base. Whatever comes here is untrusted:

- libav sees one file object and nothing else: no path, no URL, no second file, no socket;
- only containers and codecs of the tables below are parsed, also while libav probes;
- limits are counted on what was decoded, never on what a header claims.

Damaged files give what can be decoded, as ffmpeg does: a damaged packet is skipped (the sound
after it moves up) and a warning logged; a file cut short ends where it was cut. A file of which
nothing decodes is BadAudio.

Axes: C channels, S samples.
"""

from __future__ import annotations

import io
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Final, TypeAlias, cast

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from numpy.typing import NDArray

from embedder.errors import AudioTooLarge, BadAudio, BadRequest, UnsupportedAudio

AudioSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
Samples: TypeAlias = NDArray[np.float32]

CONTAINERS: Final = (
    *("wav", "w64", "aiff", "au", "caf", "flac", "mp3", "aac", "ac3", "eac3", "amr"),
    *("ogg", "mov", "matroska", "asf"),  # mov reads mp4 and m4a, matroska webm, asf wma
)
CODECS: Final = (  # libav's names of decoders
    *("aac", "ac3", "eac3", "alac", "flac", "mp2", "mp2float", "mp3", "mp3float", "opus"),
    *("vorbis", "speex", "wmav1", "wmav2", "wmapro", "wmalossless", "amrnb", "amrwb"),
    *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "gsm", "gsm_ms", "pcm_alaw", "pcm_mulaw"),
    *("pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"),
    *("pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
)
OPTIONS: Final = {
    "format_whitelist": ",".join(CONTAINERS),
    # Holds for libav's probing only (it would decode pictures and video there): the stream that
    # we decode is checked in _audio_stream.
    "codec_whitelist": ",".join(CODECS),
    "protocol_whitelist": "none",
    # By default libav searches 16-bit PCM for hidden DTS, 10-80 ms a file.
    "probesize": "65536",
    "max_probe_packets": "1",
}
DECODER_OPTIONS: Final = {"max_samples": str(1 << 20)}  # a frame; ALAC may claim 16 million
# A damaged FLAC frame decodes to noise at full scale unless its checksum is enforced.
FLAC_OPTIONS: Final = {**DECODER_OPTIONS, "err_detect": "crccheck+explode"}
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_AMPLITUDE: Final = 1e4  # full scale is 1; beyond this a log-mel is noise or overflow

_ZERO_AND_FULL_SCALE: Final = {
    np.dtype(np.uint8): (128.0, 128.0),
    np.dtype(np.int16): (0.0, 2.0**15),
    np.dtype(np.int32): (0.0, 2.0**31),  # 24-bit audio comes shifted up to 32
    np.dtype(np.float32): (0.0, 1.0),
    np.dtype(np.float64): (0.0, 1.0),
}
_CHUNK: Final = 1 << 16  # samples converted at once: single frames are too small for numpy
# PyAV lets many exceptions through; whichever it is, the file is at fault.
_LIBAV_ERRORS: Final = (
    *(av.FFmpegError, ArithmeticError, LookupError, MemoryError, RuntimeError, ValueError),
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What decoding one source may cost; None is no limit. Beyond it: AudioTooLarge."""

    max_seconds: float | None = None  # decoded duration by the source's sample rate
    max_samples: int | None = None  # decoded samples x channels: a forged rate cannot hide them
    max_bytes: int | None = None  # size of the encoded source
    max_wall_seconds: float | None = None  # time spent decoding, the reader's own time excluded


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
    return np.concatenate(list(stream_audio(source, sample_rate, limits)))


def stream_audio(
    source: AudioSource,
    sample_rate: int,
    limits: DecodeLimits = OPEN_LIMITS,
    block_seconds: float = 10.0,
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
    with _opened(source) as file, _container(file, limits) as container:
        meter = _Meter(limits)
        chunks = _mono_chunks(_frames(container, _audio_stream(container), meter))
        yielded = 0
        for samples in _blocks(_resampled(chunks, sample_rate), round(block_seconds * sample_rate)):
            yielded += samples.size
            paused = time.monotonic()
            yield samples
            meter.deadline += time.monotonic() - paused
        meter.report(yielded)


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
    peak = max(-float(samples.min()), float(samples.max()))  # min and max propagate NaN
    if not math.isfinite(peak):
        raise BadAudio(f"samples contain {peak}; NaN and Inf cannot be embedded")
    if peak > MAX_AMPLITUDE:
        raise BadAudio(f"samples reach {peak:g}; scale them to [-1, 1]")


@dataclass(slots=True)
class _Meter:
    """What this decode has cost and lost so far."""

    limits: DecodeLimits
    deadline: float = math.inf
    seconds: float = 0.0
    samples: int = 0
    faults: int = 0
    last_fault: Exception | None = None

    def __post_init__(self) -> None:
        if self.limits.max_wall_seconds is not None:
            self.deadline = time.monotonic() + self.limits.max_wall_seconds

    def charge(self, frame: AudioFrame) -> None:
        """Count one frame, before its samples are copied out."""
        rate = frame.sample_rate
        if not MIN_RATE <= rate <= MAX_RATE:
            raise BadAudio(f"sample rate {rate} Hz; resample to {MIN_RATE}..{MAX_RATE} Hz")
        self.seconds += frame.samples / rate
        self.samples += frame.samples * frame.layout.nb_channels
        _within(round(self.seconds, 6), self.limits.max_seconds, "seconds")
        _within(self.samples, self.limits.max_samples, "decoded samples")

    def check_clock(self) -> None:
        if time.monotonic() > self.deadline:
            raise AudioTooLarge(
                f"not decoded within {self.limits.max_wall_seconds} s; send a shorter clip"
            )

    def fault(self, error: Exception) -> None:
        self.faults += 1
        self.last_fault = error.with_traceback(None)  # a traceback would keep the frames alive

    def report(self, yielded: int) -> None:
        """At the end of the source: nothing is an error, damage a warning."""
        if not yielded:
            raise BadAudio(
                "no samples: the audio is empty, damaged or shorter than a sample"
            ) from self.last_fault
        if self.faults:
            _log.warning("damaged audio: what did not decode was skipped, %d times", self.faults)


def _within(value: float, limit: float | None, unit: str) -> None:
    if limit is not None and value > limit:
        raise AudioTooLarge(f"more than {limit:,} {unit}; send a shorter clip")


@contextmanager
def _opened(source: AudioSource) -> Iterator[BinaryIO]:
    """The source as a binary file; closed again if it was opened here."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(bytes(source))
    elif isinstance(source, str | os.PathLike):
        with _open_path(Path(source)) as file:
            yield file
    elif hasattr(source, "read") and hasattr(source, "seek") and not hasattr(source, "encoding"):
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


@contextmanager
def _container(file: BinaryIO, limits: DecodeLimits) -> Iterator[InputContainer]:
    """Open the container; a read error of the file itself becomes BadAudio here."""
    try:
        file.seek(0, io.SEEK_END)
        size = file.tell()
        file.seek(0)
        _within(size, limits.max_bytes, "bytes")
        if not size:
            raise BadAudio("the audio is empty: 0 bytes")
        with _av_open(file) as container:
            yield container
    except OSError as error:
        raise BadAudio(f"cannot read the audio: {error}; give a whole, seekable file") from error


def _av_open(file: BinaryIO) -> InputContainer:
    # A view without the file's name: libav would guess by the extension and show it in errors.
    nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
    try:
        return av.open(
            nameless,
            mode="r",
            options=OPTIONS,
            metadata_errors="replace",  # old tags are often Latin-1
            io_open=lambda *_: io.BytesIO(),  # whatever else a file refers to is empty
        )
    except _LIBAV_ERRORS as error:
        raise UnsupportedAudio(
            "unknown format or broken header; send WAV, FLAC, MP3, Ogg, M4A, WebM, AIFF or WMA"
        ) from error


def _audio_stream(container: InputContainer) -> AudioStream:
    """The first audio stream, its codec checked; all other streams are dropped unread."""
    if not container.streams.audio:
        raise UnsupportedAudio(f"no audio stream in this {container.format.name} file")
    stream = container.streams.audio[0]
    context = cast(Any, stream.codec_context)  # None where libav has no decoder
    if context is None or context.name not in CODECS:
        name = context.name if context else "unknown"
        raise UnsupportedAudio(f"audio codec {name} is not accepted; convert to WAV or FLAC")
    context.options = FLAC_OPTIONS if context.name == "flac" else DECODER_OPTIONS
    context.thread_count = 1  # threads cost more than they give on clips
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


def _packets(
    container: InputContainer, stream: AudioStream, meter: _Meter
) -> Iterator[Packet[AudioStream]]:
    """Packets to the end of the container, or to where it is broken."""
    try:
        yield from container.demux(stream)
    except _LIBAV_ERRORS as error:
        meter.fault(error)


def _frames(container: InputContainer, stream: AudioStream, meter: _Meter) -> Iterator[AudioFrame]:
    """Decoded frames with at least one sample, each already charged to the meter."""
    for packet in _packets(container, stream, meter):
        meter.check_clock()
        try:
            frames = stream.decode(packet)
        except _LIBAV_ERRORS as error:
            meter.fault(error)
            continue
        for frame in frames:
            if frame.samples:
                meter.charge(frame)
                yield frame


_frame_kind = attrgetter("sample_rate", "layout.nb_channels", "format.name")


def _mono_chunks(frames: Iterable[AudioFrame]) -> Iterator[tuple[int, Samples]]:
    """Pairs of sample rate and mono samples; any of a frame's kind may change on the way."""
    for (rate, channels, _), run in groupby(frames, key=_frame_kind):
        for batch in _batches(run):
            yield rate, _mono(batch, channels)


def _batches(frames: Iterable[AudioFrame]) -> Iterator[list[NDArray[Any]]]:
    """Frames of one kind as arrays, gathered to about _CHUNK samples over all channels."""
    batch: list[NDArray[Any]] = []
    size = 0
    for frame in frames:
        batch.append(frame.to_ndarray())
        size += batch[-1].size
        if size >= _CHUNK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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
    mono /= np.float32(channels)
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
