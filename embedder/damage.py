"""How much of an audio file is missing, compared with what its header says.

Only headers that state a length are used. For MP3, AAC, AC-3, AMR and Ogg, libav guesses the length
from the file's size, which says nothing about what was lost.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, Final

from av.audio.stream import AudioStream
from av.container import InputContainer

_GUESSED: Final = {"mp3", "aac", "ac3", "eac3", "amr", "ogg"}
# Encoders' delays and rounding: up to this many seconds, or this share, nothing is missing.
_SLACK_SECONDS: Final = 0.25
_SLACK: Final = 0.02

# For files of chunks, by their first bytes: the format of a length, and the chunk of the samples.
_CHUNKED: Final = {b"RIFF": ("<I", b"data"), b"FORM": (">I", b"SSND")}
_MAX_CHUNKS: Final = 1000  # before the samples; a hostile file has millions
_UNKNOWN: Final = (0, 0xFFFF_FFFF)  # written by programs that cannot go back to the header


def shortfall(
    file: BinaryIO, container: InputContainer, stream: AudioStream, seconds: float
) -> str | None:
    """What to say of a file that decoded to this many seconds; None if its header agrees."""
    claimed = max(_stated(container, stream), seconds * _chunk_ratio(file))
    if claimed - seconds <= max(_SLACK_SECONDS, _SLACK * claimed):
        return None
    return f"incomplete: {seconds:.1f} s of audio where the header says {claimed:.1f} s"


def _stated(container: InputContainer, stream: AudioStream) -> float:
    """The seconds that the container states; 0 if it states none."""
    if container.format.name in _GUESSED:
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1  # else the container's length may be a picture's
    return container.duration / 1e6 if alone and container.duration is not None else 0.0


def _chunk_ratio(file: BinaryIO) -> float:
    """How many times more bytes of samples the header states than there are, at least 1.

    It is 1 for files that are not of chunks. libav believes the size of a WAV file, not its header.
    """
    size = file.seek(0, io.SEEK_END)
    for kind, at, length, samples in islice(_chunks(file, size), _MAX_CHUNKS):
        if kind == samples and length not in _UNKNOWN and size > at:
            return max(1.0, length / (size - at))
    return 1.0


def _chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int, bytes]]:
    """For every chunk: its kind, where its content begins, its length, and the samples' kind."""
    file.seek(0)
    number, samples = _CHUNKED.get(file.read(4), ("", b""))
    at = 12
    while number and at + 8 <= size:
        file.seek(at)
        kind, length = file.read(4), struct.unpack(number, file.read(4))[0]
        yield kind, at + 8, length, samples
        at += 8 + length + length % 2
