"""The process in which untrusted audio is decoded: `python -m service.decode_worker LIMITS`.

One job after another over stdin and stdout, each a header and a body. Audio goes through memory
that both sides share, which is cheaper than a pipe, or after the body where it does not fit in:

    job      sample rate, length    (the encoded audio)
    reply    kind, length           OK: fingerprint of the samples and their length in bytes
                                    (then the samples, float32)
                                    FAILED: JSON [error class, message]

Whatever a parser's bug might do here, the process has no memory beyond its limit, can open no
file and no socket, and its end is one failed job.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import math
import mmap
import os
import resource
import struct
import sys
import wave
from collections.abc import Iterable
from typing import BinaryIO, Final, TypeAlias

import numpy as np

from embedder.audio.decode import SHORT_BLOCK_SECONDS, Samples, stream_audio
from embedder.audio.libav import DecodeLimits
from embedder.errors import AudioTooLarge, EmbedderError
from embedder.process import keep_freed_memory
from service.cache import fingerprint

Buffer: TypeAlias = bytes | memoryview

JOB: Final = struct.Struct("<IQ")
REPLY: Final = struct.Struct("<BQ")
DECODED: Final = struct.Struct("<32sQ")
READY, OK, FAILED = 0, 1, 2
SHARED_BYTES: Final = 16 << 20  # two minutes at 32 kHz
PIPE_BYTES: Final = 1 << 20  # what an unprivileged process may ask for


def decode(
    upload: bytes, sample_rate: int, limits: DecodeLimits, room: Samples
) -> tuple[int, bytes, Buffer]:
    """The kind of the reply, its body, and the samples: in `room` where they fit in."""
    try:
        samples = joined(stream_audio(upload, sample_rate, limits, SHORT_BLOCK_SECONDS), room)
    except EmbedderError as error:
        return FAILED, json.dumps([type(error).__name__, str(error)]).encode(), b""
    except MemoryError:
        message = "decoding takes more memory than there is; send a shorter clip"
        return FAILED, json.dumps([AudioTooLarge.__name__, message]).encode(), b""
    raw = samples.data.cast("B")
    return OK, DECODED.pack(fingerprint(raw), len(raw)), raw


def joined(blocks: Iterable[Samples], room: Samples) -> Samples:
    """All blocks one after the other, in `room` as far as it goes."""
    size = 0
    held: list[Samples] = []
    for block in blocks:
        if held or block.size > room.size - size:
            held.append(block)
        else:
            room[size : size + block.size] = block
            size += block.size
    return np.concatenate([room[:size], *held]) if held else room[:size]


def confine(memory: int) -> None:
    """Give up what decoding does not need; irreversible."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, lowest_free))


def allow_cpu(seconds: float) -> None:
    """Let the next job use so much processor time; beyond, the kernel ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def widen(*pipes: int) -> None:
    """Let much be in the pipes of what is too long to share: each time one is full is a switch."""
    for pipe in pipes:
        with contextlib.suppress(OSError, AttributeError):  # a socket, or not Linux
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def rehearse(limits: DecodeLimits) -> None:
    """Decode once, well and badly: whatever Python loads lazily is loaded before `confine`."""
    room = np.empty(32_000, np.float32)
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 44_100, 0, "NONE", ""))
        sound.writeframes(bytes(8_820))
    for upload in (file.getvalue(), b"no audio at all", b""):
        decode(upload, 32_000, limits, room)


def serve(jobs: BinaryIO, replies: BinaryIO, shared: mmap.mmap, limits: DecodeLimits) -> None:
    """Answer jobs until the other side closes."""

    def reply(kind: int, body: bytes = b"", samples: Buffer = b"") -> None:
        replies.write(REPLY.pack(kind, len(body)) + body)
        if len(samples) > len(shared):  # else they are in what is shared
            replies.write(samples)
        replies.flush()

    room = np.frombuffer(shared, "<f4")
    reply(READY)
    while len(header := jobs.read(JOB.size)) == JOB.size:
        sample_rate, length = JOB.unpack(header)
        upload = shared[:length] if length <= len(shared) else jobs.read(length)
        if len(upload) < length:
            return
        if limits.max_wall_seconds is not None:
            allow_cpu(limits.max_wall_seconds)
        reply(*decode(upload, sample_rate, limits, room))


def main() -> None:
    """Run with the limits and the file of shared memory that the first argument gives as JSON."""
    given = json.loads(sys.argv[1])
    memory, file = given.pop("memory"), given.pop("shared")
    shared = mmap.mmap(file, SHARED_BYTES)
    os.close(file)
    limits = DecodeLimits(**given)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not reach the replies
    logging.disable()  # a damaged upload is no event of this server
    keep_freed_memory()
    widen(0, replies.fileno())
    rehearse(limits)
    confine(memory)
    serve(sys.stdin.buffer, replies, shared, limits)


if __name__ == "__main__":
    main()
