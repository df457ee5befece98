"""The process in which untrusted audio is decoded: `python -m service.decode_worker SETTINGS`.

It reads one job after the other from stdin and writes a reply to each to stdout:

    job      sample rate, length    (the encoded audio)
    reply    kind, length           OK: fingerprint of the samples and their length in bytes
                                    (the samples, float32)
                                    FAILED: JSON [error class, message]

What stands in parentheses goes through memory that both sides share, which is cheaper than a pipe;
where it does not fit there, it follows in the pipe.

A parser's bug can do little harm: the process cannot take more memory than its limit, can open no
file and no socket, and its death costs one job.
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
    upload: bytes, sample_rate: int, limits: DecodeLimits, buffer: Samples
) -> tuple[int, bytes, Buffer]:
    """Return the kind of the reply, its body, and the samples, in `buffer` where they fit."""
    try:
        samples = joined(stream_audio(upload, sample_rate, limits, SHORT_BLOCK_SECONDS), buffer)
    except EmbedderError as error:
        return FAILED, json.dumps([type(error).__name__, str(error)]).encode(), b""
    except MemoryError:
        message = "decoding takes more memory than there is; send a shorter clip"
        return FAILED, json.dumps([AudioTooLarge.__name__, message]).encode(), b""
    raw = samples.data.cast("B")
    return OK, DECODED.pack(fingerprint(raw), len(raw)), raw


def joined(blocks: Iterable[Samples], buffer: Samples) -> Samples:
    """Join all blocks: within `buffer` if they fit, else in an array of their own."""
    size = 0
    beyond: list[Samples] = []
    for block in blocks:
        if beyond or block.size > buffer.size - size:
            beyond.append(block)
        else:
            buffer[size : size + block.size] = block
            size += block.size
    return np.concatenate([buffer[:size], *beyond]) if beyond else buffer[:size]


def confine(memory: int) -> None:
    """Give up the rights that decoding does not need. This cannot be undone."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, lowest_free))


def allow_cpu(seconds: float) -> None:
    """Limit the processor time of the next job; the kernel ends a process that exceeds it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def widen(*pipes: int) -> None:
    """Make pipes larger: whenever one is full, the two processes must take turns."""
    for pipe in pipes:
        with contextlib.suppress(OSError, AttributeError):  # it is a socket, or this is not Linux
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def rehearse(limits: DecodeLimits) -> None:
    """Decode good and bad audio once, so that Python loads all it needs before `confine`."""
    buffer = np.empty(32_000, np.float32)
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 44_100, 0, "NONE", ""))
        sound.writeframes(bytes(8_820))
    for upload in (file.getvalue(), b"no audio at all", b""):
        decode(upload, 32_000, limits, buffer)


def serve(jobs: BinaryIO, replies: BinaryIO, shared: mmap.mmap, limits: DecodeLimits) -> None:
    """Answer jobs until the other side closes the pipe."""

    def reply(kind: int, body: bytes = b"", samples: Buffer = b"") -> None:
        replies.write(REPLY.pack(kind, len(body)) + body)
        if len(samples) > len(shared):  # shorter ones are in the shared memory already
            replies.write(samples)
        replies.flush()

    buffer = np.frombuffer(shared, "<f4")
    reply(READY)
    while len(header := jobs.read(JOB.size)) == JOB.size:
        sample_rate, length = JOB.unpack(header)
        upload = shared[:length] if length <= len(shared) else jobs.read(length)
        if len(upload) < length:
            return
        if limits.max_wall_seconds is not None:
            allow_cpu(limits.max_wall_seconds)
        reply(*decode(upload, sample_rate, limits, buffer))


def main() -> None:
    """Run with the settings of the first argument: limits, memory, and the shared file, as JSON."""
    settings = json.loads(sys.argv[1])
    memory, file = settings.pop("memory"), settings.pop("shared")
    shared = mmap.mmap(file, SHARED_BYTES)
    os.close(file)
    limits = DecodeLimits(**settings)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the replies
    logging.disable()  # damaged uploads are the clients' matter, not the log's
    keep_freed_memory()
    widen(0, replies.fileno())
    rehearse(limits)
    confine(memory)
    serve(sys.stdin.buffer, replies, shared, limits)


if __name__ == "__main__":
    main()
