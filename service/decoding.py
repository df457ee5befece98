"""Untrusted bytes to samples, in child processes that may die.

One job at a time each, so that a death has one cause. The event loop only copies bytes.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import mmap
import os
import sys
import tempfile
from asyncio import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from embedder.errors import AudioTooLarge, BadAudio, BadRequest, EmbedderError, UnsupportedAudio
from embedder.libav import DecodeLimits
from service.decode_worker import DECODED, FAILED, JOB, READY, REPLY, SHARED_BYTES

START_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 2.0  # beyond the decoder's own clock, for a parser that hangs
_PIPE_BUFFER: Final = 1 << 20
_ERRORS: Final[dict[str, type[EmbedderError]]] = {
    error.__name__: error for error in (BadAudio, UnsupportedAudio, AudioTooLarge, BadRequest)
}
_log = logging.getLogger(__name__)


class DecoderDied(Exception):
    """The child ended in the middle of a job."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Samples [S], float32, and the fingerprint of their bytes."""

    samples: NDArray[np.float32]
    fingerprint: bytes


def decoder_version(limits: DecodeLimits) -> str:
    """All that decides what an upload decodes to, and whether."""
    return f"av {version('av')} soxr {version('soxr')} {limits}"


class Decoder:
    """One child process."""

    def __init__(self, process: subprocess.Process, pipe: BinaryIO, shared: mmap.mmap) -> None:
        self.process = process
        self.jobs = 0
        self._pipe = pipe
        self._shared = shared
        self._late = False

    @classmethod
    async def start(cls, limits: DecodeLimits, memory: int) -> Decoder:
        """A child that has loaded all it needs; it knows nothing of this server's environment."""
        file = _shared_file()
        reading, writing = os.pipe()
        pipe = os.fdopen(writing, "wb", buffering=0)
        try:
            shared = mmap.mmap(file, SHARED_BYTES)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "service.decode_worker"),  # -P: not from this folder
                json.dumps({**asdict(limits), "memory": memory, "shared": file}),
                pass_fds=[file],
                stdin=reading,
                stdout=subprocess.PIPE,
                limit=_PIPE_BUFFER,
                env={
                    "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                    "PATH": os.defpath,
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_NUM_THREADS": "1",
                },
            )
        except BaseException:
            pipe.close()
            raise
        finally:
            os.close(file)
            os.close(reading)
        decoder = cls(process, pipe, shared)
        try:
            kind, _ = await asyncio.wait_for(decoder._reply(), START_SECONDS)
            assert kind == READY
        except BaseException:
            await decoder.stop()
            raise
        return decoder

    @property
    def alive(self) -> bool:
        """Whether it can take a job."""
        return self.process.returncode is None and not self._late

    async def run(self, upload: bytes, sample_rate: int, seconds: float | None) -> Decoded:
        """Decode; DecoderDied if the child does not survive it, TimeoutError if it is too slow."""
        self.jobs += 1
        # Its end ends whatever waits for it. asyncio.wait_for would need another task, until 3.12.
        loop = asyncio.get_running_loop()
        clock = None if seconds is None else loop.call_later(seconds, self._give_up)
        try:
            return await self._run(upload, sample_rate)
        except DecoderDied as error:
            if self._late:
                raise TimeoutError from error
            raise
        finally:
            if clock is not None:
                clock.cancel()

    def _give_up(self) -> None:
        self._kill()
        self._late = True

    async def stop(self) -> None:
        """End the child, whatever it does."""
        self._kill()
        await self.process.wait()
        self._pipe.close()
        self._shared.close()

    def _kill(self) -> None:
        if self.alive:
            self.process.kill()

    async def _run(self, upload: bytes, sample_rate: int) -> Decoded:
        await self._send(upload, sample_rate)
        kind, body = await self._reply()
        if kind == FAILED:
            name, message = json.loads(body)
            raise _ERRORS.get(name, BadAudio)(message)
        fingerprint, size = DECODED.unpack(body)
        return Decoded(await self._samples(size), fingerprint)

    async def _send(self, upload: bytes, sample_rate: int) -> None:
        fits = len(upload) <= SHARED_BYTES
        if fits:
            self._shared[: len(upload)] = upload
        try:
            # What wakes up the child is often put to sleep for it. A file's write, unlike that of
            # the event loop, does not keep Python's lock from other threads meanwhile.
            self._pipe.write(JOB.pack(sample_rate, len(upload)))
            if not fits:
                await asyncio.to_thread(self._pipe.write, upload)
        except ConnectionError as error:
            raise DecoderDied from error

    async def _reply(self) -> tuple[int, bytes]:
        kind, length = REPLY.unpack(await self._read(REPLY.size))
        return kind, await self._read(length)

    async def _samples(self, size: int) -> NDArray[np.float32]:
        raw = self._shared if size <= SHARED_BYTES else await self._read(size)
        # A copy: the next job is written over what is shared, and torch takes no read-only array.
        return np.copy(np.frombuffer(raw, np.float32, size // 4))

    async def _read(self, size: int) -> bytes:
        assert self.process.stdout
        try:
            return await self.process.stdout.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise DecoderDied from error


def _shared_file() -> int:
    """A file descriptor of so much memory, of which only what is written takes any."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("decoded", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, SHARED_BYTES)
        # Whatever takes over the child could end this process by making the file shorter.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return file
    with tempfile.TemporaryFile() as named_nowhere:
        file = os.dup(named_nowhere.fileno())
    os.ftruncate(file, SHARED_BYTES)
    return file


class DecoderPool:
    """So many children; each is replaced when it dies, hangs, or has done `max_jobs`."""

    def __init__(self, size: int, limits: DecodeLimits, memory: int, max_jobs: int) -> None:
        self.limits = limits
        self._memory = memory
        self._max_jobs = max_jobs
        self._size = size
        # None: a child that is not started yet. The last one used is warm: taken first.
        self._free: asyncio.LifoQueue[Decoder | None] = asyncio.LifoQueue()
        self._all: set[Decoder] = set()
        self._running: set[asyncio.Task[Decoded]] = set()

    async def start(self) -> None:
        """Start all children."""
        for decoder in await asyncio.gather(*(self._started() for _ in range(self._size))):
            self._free.put_nowait(decoder)

    async def close(self) -> None:
        """End all children; what still runs fails."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*(decoder.stop() for decoder in self._all))
        self._all.clear()

    async def decode(self, upload: bytes, sample_rate: int) -> Decoded:
        """Decode and resample.

        A child that dies is replaced and the job tried once more: the first death may have been
        another's fault (the machine short of memory), the second is this file's.

        Raises
        ------
        BadAudio, UnsupportedAudio, AudioTooLarge : as `embedder.audio.load_audio`.
        """
        # Shielded: a child cannot be interrupted, and must have finished before its next job.
        task = asyncio.create_task(self._decode(upload, sample_rate))
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Decoded]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if nobody waits any more

    async def _decode(self, upload: bytes, sample_rate: int) -> Decoded:
        decoder = await self._free.get()
        try:
            for _ in range(2):
                decoder = await self._fit(decoder)
                try:
                    seconds = self.limits.max_wall_seconds
                    limit = None if seconds is None else seconds + GRACE_SECONDS
                    return await decoder.run(upload, sample_rate, limit)
                except DecoderDied:
                    _log.warning("a decoder died (exit status %s)", decoder.process.returncode)
                    await self._stop(decoder)
                except (TimeoutError, asyncio.CancelledError) as error:
                    await self._stop(decoder)
                    if isinstance(error, asyncio.CancelledError):
                        raise
                    raise AudioTooLarge(f"not decoded within {seconds} s") from error
            raise BadAudio("this file crashes the decoder; convert it to WAV or FLAC")
        finally:
            self._free.put_nowait(decoder)

    async def _fit(self, decoder: Decoder | None) -> Decoder:
        """This child, or a fresh one in its place."""
        if decoder is not None and decoder.alive and decoder.jobs < self._max_jobs:
            return decoder
        if decoder is not None:
            await self._stop(decoder)
        return await self._started()

    async def _started(self) -> Decoder:
        decoder = await Decoder.start(self.limits, self._memory)
        self._all.add(decoder)
        return decoder

    async def _stop(self, decoder: Decoder) -> None:
        await decoder.stop()
        self._all.discard(decoder)
