"""One decoder process, seen from the server: how it starts, gets a job, and ends.

A process has one job at a time, so that a death has one cause. What it does is in
`service.decode_worker`; who asks which process is in `service.decoding`.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import sys
from asyncio import subprocess
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from embedder.audio.libav import DecodeLimits
from embedder.children import import_path
from embedder.errors import AudioTooLarge, BadAudio, BadRequest, EmbedderError, UnsupportedAudio
from service.decode_worker import DECODED, FAILED, JOB, READY, REPLY, SHARED_BYTES
from service.shared_memory import shared_file

START_SECONDS: Final = 60.0
_PIPE_BUFFER: Final = 1 << 20
_ERRORS: Final[dict[str, type[EmbedderError]]] = {
    error.__name__: error for error in (BadAudio, UnsupportedAudio, AudioTooLarge, BadRequest)
}


class DecoderDied(Exception):
    """The process ended in the middle of a job."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Samples [S], float32, and the fingerprint of their bytes."""

    samples: NDArray[np.float32]
    fingerprint: bytes


class Decoder:
    """A child process that decodes one upload after the other."""

    def __init__(self, process: subprocess.Process, pipe: BinaryIO, shared: mmap.mmap) -> None:
        self.process = process
        self.jobs = 0
        self._pipe = pipe
        self._shared = shared
        self._late = False

    @classmethod
    async def start(cls, limits: DecodeLimits, memory: int) -> Decoder:
        """Start a process that may use `memory` bytes, and wait until it is ready for a job.

        Raises
        ------
        DecoderDied : it ended while it started.
        TimeoutError : it was not ready within START_SECONDS.
        OSError : the machine has no process, pipe or memory left.
        """
        file = shared_file(SHARED_BYTES)
        try:
            shared = mmap.mmap(file, SHARED_BYTES)
            process, pipe = await _spawn({**asdict(limits), "memory": memory, "shared": file}, file)
        finally:
            os.close(file)
        decoder = cls(process, pipe, shared)
        try:
            kind, _ = await asyncio.wait_for(decoder._reply(), START_SECONDS)
            assert kind == READY
        except BaseException as error:
            await decoder.stop()
            if isinstance(error, DecoderDied):
                status = process.returncode
                raise DecoderDied(f"its process ended with exit status {status}") from error
            raise
        return decoder

    @property
    def alive(self) -> bool:
        """Whether the process can take a job."""
        return self.process.returncode is None and not self._late

    async def run(self, upload: bytes, sample_rate: int, seconds: float | None) -> Decoded:
        """Decode an upload; after `seconds` the process is killed.

        Raises
        ------
        BadAudio, UnsupportedAudio, AudioTooLarge, BadRequest : the decoder refused the upload.
        DecoderDied : the process did not survive the upload.
        TimeoutError : it took too long.
        """
        self.jobs += 1
        # Killing the process ends every read below. Before Python 3.12, asyncio.wait_for would
        # start another task for this.
        loop = asyncio.get_running_loop()
        timer = None if seconds is None else loop.call_later(seconds, self._give_up)
        try:
            await self._send(upload, sample_rate)
            return await self._decoded()
        except DecoderDied as error:
            if self._late:
                raise TimeoutError from error
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def stop(self) -> None:
        """Kill the process, whatever it is doing, and wait for its end."""
        self._kill()
        await self.process.wait()
        self._pipe.close()
        self._shared.close()

    def _give_up(self) -> None:
        self._kill()
        self._late = True

    def _kill(self) -> None:
        if self.alive:
            self.process.kill()

    async def _send(self, upload: bytes, sample_rate: int) -> None:
        fits = len(upload) <= SHARED_BYTES
        if fits:
            self._shared[: len(upload)] = upload
        try:
            # Waking the child often puts this thread to sleep for a moment. A file's write lets
            # other threads have Python's lock meanwhile; a write of the event loop does not.
            self._pipe.write(JOB.pack(sample_rate, len(upload)))
            if not fits:
                await asyncio.to_thread(self._pipe.write, upload)
        except ConnectionError as error:
            raise DecoderDied from error

    async def _decoded(self) -> Decoded:
        """Read the answer to a job."""
        kind, body = await self._reply()
        if kind == FAILED:
            name, message = json.loads(body)
            raise _ERRORS.get(name, BadAudio)(message)
        fingerprint, size = DECODED.unpack(body)
        raw = self._shared if size <= SHARED_BYTES else await self._read(size)
        # A copy, because the next job overwrites the shared memory and torch takes no read-only
        # array.
        return Decoded(np.copy(np.frombuffer(raw, np.float32, size // 4)), fingerprint)

    async def _reply(self) -> tuple[int, bytes]:
        kind, length = REPLY.unpack(await self._read(REPLY.size))
        return kind, await self._read(length)

    async def _read(self, size: int) -> bytes:
        assert self.process.stdout
        try:
            return await self.process.stdout.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise DecoderDied from error


async def _spawn(settings: dict[str, Any], file: int) -> tuple[subprocess.Process, BinaryIO]:
    """Start `service.decode_worker`; it inherits this file, and nothing of our environment.

    The second value is the end of a pipe that the process reads as its standard input.
    """
    reading, writing = os.pipe()
    pipe = os.fdopen(writing, "wb", buffering=0)
    try:
        process = await asyncio.create_subprocess_exec(
            # With -P, Python does not import from the current folder.
            *(sys.executable, "-P", "-m", "service.decode_worker", json.dumps(settings)),
            pass_fds=[file],
            stdin=reading,
            stdout=subprocess.PIPE,
            limit=_PIPE_BUFFER,
            env={
                **import_path(),
                "PATH": os.defpath,
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
    except BaseException:
        pipe.close()
        raise
    finally:
        os.close(reading)
    return process, pipe
