"""libav within bounds: an untrusted file object -> decoded frames, each counted before it is used.

- libav sees one file object and nothing else: no path, no URL, no second file, no socket;
- only containers and codecs of the tables below are parsed, also while libav probes;
- limits are counted on what was decoded, never on what a header claims.
"""

from __future__ import annotations

import ctypes
import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, BinaryIO, Final, cast

import av
import av._core
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard

from embedder.errors import AudioTooLarge, BadAudio, UnsupportedAudio

CONTAINERS: Final = (
    *("wav", "w64", "aiff", "au", "caf", "flac", "mp3", "aac", "ac3", "eac3", "amr"),
    *("ogg", "mov", "matroska", "asf"),  # mov reads mp4 and m4a, matroska webm, asf wma
)
CODECS: Final = (  # as libav names decoders
    *("aac", "ac3", "eac3", "alac", "flac", "mp2", "mp2float", "mp3", "mp3float", "opus"),
    *("vorbis", "speex", "wmav1", "wmav2", "wmapro", "wmalossless", "amrnb", "amrwb"),
    *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "gsm", "gsm_ms", "pcm_alaw", "pcm_mulaw"),
    *("pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"),
    *("pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
)
OPTIONS: Final = {
    "format_whitelist": ",".join(CONTAINERS),
    # This holds only while libav probes, where it would decode pictures and video too. The stream
    # that we decode is checked in audio_stream.
    "codec_whitelist": ",".join(CODECS),
    "protocol_whitelist": "none",  # so that nothing a file refers to can be opened
    # By default libav searches 16-bit PCM for hidden DTS, 10-80 ms a file.
    "probesize": "65536",
    "max_probe_packets": "1",
    # The bytes of a packet of PCM in WAV. With the default, 4096, decoding ten seconds takes 1 ms
    # longer; with more than this, opening takes as much longer, because the first packet is probed.
    "max_size": "16384",
}
DECODER_OPTIONS: Final = {"max_samples": str(1 << 20)}  # of a frame; ALAC may claim 16 million
# A damaged FLAC frame decodes to noise at full scale unless its checksum is enforced.
FLAC_OPTIONS: Final = {**DECODER_OPTIONS, "err_detect": "crccheck+explode"}
MAX_ALLOCATION: Final = 256 << 20  # bytes; the index of a day of AAC in MP4 takes 100 MB
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
# PyAV lets exceptions of many types through. In all of them the file is at fault.
LIBAV_ERRORS: Final = (
    *(av.FFmpegError, ArithmeticError, LookupError, MemoryError, RuntimeError, ValueError),
)
# PyAV 19 reads tags of any encoding and owns its layouts; older ones leave both to the caller.
_OLD_PYAV: Final = hasattr(InputContainer, "metadata_errors")
# Old tags are often Latin-1.
_TAG_OPTIONS: Final[dict[str, Any]] = {"metadata_errors": "replace"} if _OLD_PYAV else {}


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What decoding one source may cost; None is no limit. Beyond a limit it is AudioTooLarge."""

    max_seconds: float | None = None  # decoded duration by the source's sample rate
    max_samples: int | None = None  # decoded samples x channels: a forged rate cannot hide them
    max_bytes: int | None = None  # size of the encoded source
    max_wall_seconds: float | None = None  # time spent decoding, the reader's own time excluded


@dataclass(slots=True)
class Meter:
    """What decoding one source has cost and lost so far."""

    limits: DecodeLimits
    deadline: float = math.inf  # by time.monotonic()
    seconds: float = 0.0
    samples: int = 0  # of all channels
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
        """Raise AudioTooLarge after the deadline."""
        if time.monotonic() > self.deadline:
            raise AudioTooLarge(
                f"not decoded within {self.limits.max_wall_seconds} s; send a shorter clip"
            )

    def fault(self, error: Exception) -> None:
        """Count an error of libav that was passed over."""
        self.faults += 1
        self.last_fault = error.with_traceback(None)  # a traceback would keep the frames alive

    def report(self, yielded: int) -> str | None:
        """What to say of damage at the end of a source; BadAudio if no sample was yielded."""
        if not yielded:
            raise BadAudio(
                "no samples: the audio is empty, damaged or shorter than a sample"
            ) from self.last_fault
        if not self.faults:
            return None
        times = "once" if self.faults == 1 else f"{self.faults} times"
        return f"damaged audio: what did not decode was skipped, {times}"


def _within(value: float, limit: float | None, unit: str) -> None:
    if limit is not None and value > limit:
        raise AudioTooLarge(f"more than {limit:,} {unit}; send a shorter clip")


@contextmanager
def open_container(file: BinaryIO, limits: DecodeLimits) -> Iterator[InputContainer]:
    """The container in a file; an error in reading the file, here or later, becomes BadAudio."""
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


@cache
def _cap_allocations() -> None:
    """Bound each allocation of libav in this process: a WAV of 4 kB can ask for a title of 2 GB."""
    with suppress(AttributeError, OSError):  # where the symbol is hidden there is no cap
        libav = ctypes.CDLL(av._core.__file__)  # also searches the libraries that it is linked to
        libav.av_max_alloc(ctypes.c_size_t(MAX_ALLOCATION))


def _av_open(file: BinaryIO) -> InputContainer:
    _cap_allocations()
    # Without the file's name, which libav would show in errors, and whose suffix it would believe.
    nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
    try:
        opened: InputContainer = av.open(nameless, mode="r", options=OPTIONS, **_TAG_OPTIONS)
    except LIBAV_ERRORS as error:
        raise UnsupportedAudio(
            "unknown format or broken header; send WAV, FLAC, MP3, Ogg, M4A, WebM, AIFF or WMA"
        ) from error
    return opened


def audio_stream(container: InputContainer) -> AudioStream:
    """The first audio stream, its codec checked; libav drops the packets of all other streams."""
    if not container.streams.audio:
        raise UnsupportedAudio(f"no audio stream in this {container.format.name} file")
    stream = container.streams.audio[0]
    context = cast(Any, stream.codec_context)  # None where libav has no decoder
    if context is None or context.name not in CODECS:
        name = context.name if context else "unknown"
        raise UnsupportedAudio(f"audio codec {name} is not accepted; convert to WAV or FLAC")
    layout = context.layout
    if _is_odd(layout):  # their mean does not depend on what the channels are called
        context.layout = f"{layout.nb_channels} channels"
    context.options = FLAC_OPTIONS if context.name == "flac" else DECODER_OPTIONS
    context.thread_count = 1  # threads cost more than they give on clips
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


# Before version 19, PyAV shares an odd layout's channel map with the codec or frame that it came
# from, and both free it: a few bytes in a CAF or MOV file kill the process. Therefore the codec
# gets another layout before it frees the old one, and an odd layout from a decoder is never freed.


def _is_odd(layout: AudioLayout) -> bool:
    """Whether a layout lists its channels one by one, as "2 channels (FR+FL)" does."""
    return "(" in layout.name


def keep_if_odd(layout: AudioLayout) -> None:
    """Never free this layout, if freeing it would free memory twice."""
    if _OLD_PYAV and _is_odd(layout):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))


def _packets(
    container: InputContainer, stream: AudioStream, meter: Meter
) -> Iterator[Packet[AudioStream]]:
    """The packets up to the end of the container, or up to where it is broken."""
    try:
        yield from container.demux(stream)
    except LIBAV_ERRORS as error:
        meter.fault(error)


def frames(container: InputContainer, stream: AudioStream, meter: Meter) -> Iterator[AudioFrame]:
    """Decoded frames with at least one sample; the meter has counted each before it is given."""
    for packet in _packets(container, stream, meter):
        meter.check_clock()
        try:
            frames = stream.decode(packet)
        except LIBAV_ERRORS as error:
            meter.fault(error)
            continue
        for frame in frames:
            keep_if_odd(frame.layout)
        for frame in frames:
            if frame.samples:
                meter.charge(frame)
                yield frame
