"""Untrusted bytes to samples, in child processes that may die.

One job at a time each, so that a death has one cause. The event loop only copies bytes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import mmap
import os
import signal
import sys
from asyncio import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from embedder.audio.libav import DecodeLimits
from embedder.children import import_path
from embedder.errors import AudioTooLarge, BadAudio, BadRequest, EmbedderError, UnsupportedAudio
from service.decode_worker import DECODED, FAILED, JOB, READY, REPLY, SHARED_BYTES
from service.errors import NotReady
from service.shared_memory import shared_file
from service.turns import Turn, Turns

START_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 2.0  # beyond the decoder's own clock, for a parser that hangs
# Time to finish for a job whose client is gone; to start another child costs about as much.
GONE_SECONDS: Final = 1.0
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
        file = shared_file(SHARED_BYTES)
        try:
            reading, writing = os.pipe()
        except OSError:
            os.close(file)
            raise
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
            os.close(file)
            os.close(reading)
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


async def _at_once() -> None:
    """There is room."""


def _too_slow(seconds: float | None) -> AudioTooLarge:
    return AudioTooLarge(f"not decoded within {seconds} s; send a shorter clip, or WAV or FLAC")


def _log_start(error: BaseException) -> None:
    reason = error.__cause__ or error
    _log.error("a decoder cannot be started: %s", str(reason) or f"not within {START_SECONDS:g} s")


class DecoderPool:
    """So many children; each is replaced when it dies, hangs, or has done `max_jobs`."""

    def __init__(self, size: int, limits: DecodeLimits, memory: int, max_jobs: int) -> None:
        self.limits = limits
        self._memory = memory
        self._max_jobs = max_jobs
        self._size = size
        # None: a child that is not started yet. The last one used is warm: taken first.
        self._turns: Turns[Decoder | None] = Turns(size)
        self._all: set[Decoder] = set()
        self._running: set[asyncio.Task[Decoded]] = set()

    async def start(self) -> None:
        """Start all children; NotReady where none can be. Others are tried again when needed."""
        starts = (self._started() for _ in range(self._size))
        results = await asyncio.gather(*starts, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures[:1]:
            _log_start(failure)
            if len(failures) == self._size:
                raise failure
        for result in results:
            self._turns.add(result if isinstance(result, Decoder) else None)

    @property
    def backlog_seconds(self) -> float:
        """About how long what waits and what is being decoded will take."""
        return self._turns.backlog_seconds

    async def close(self) -> None:
        """End all children; what still runs fails."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*(decoder.stop() for decoder in self._all))
        self._all.clear()

    @property
    def decoders(self) -> frozenset[Decoder]:
        """The decoders whose processes run."""
        return frozenset(self._all)

    async def decode(
        self, upload: bytes, sample_rate: int, room: Callable[[], Awaitable[None]] = _at_once
    ) -> Decoded:
        """Decode and resample; once it is this job's turn, and there is room for its samples.

        A child that dies is replaced and the job tried once more: the first death may have been
        another's fault (the machine short of memory), the second is this file's.

        Raises
        ------
        BadAudio, UnsupportedAudio, AudioTooLarge : as `embedder.audio.decode.load_audio`.
        NotReady : a child is needed and cannot be started.
        """
        # A job that still waits here is dropped when its client is gone.
        turn, decoder = await self._turns.take(len(upload))
        try:
            await room()
        except BaseException:
            self._turns.leave(turn)
            raise
        # Shielded: a child cannot be interrupted, and must have finished before its next job.
        task = asyncio.create_task(self._decode(turn, decoder, upload, sample_rate))
        self._running.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # What the caller holds for this job stays counted until the job has ended.
            await asyncio.wait({task}, timeout=GONE_SECONDS)
            task.cancel()
            await asyncio.wait({task})
            raise

    def _done(self, task: asyncio.Task[Decoded]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if nobody waits any more

    async def _decode(
        self,
        turn: Turn[Decoder | None],
        decoder: Decoder | None,
        upload: bytes,
        sample_rate: int,
    ) -> Decoded:
        try:
            for _ in range(2):
                decoder = await self._fit(decoder)
                try:
                    seconds = self.limits.max_wall_seconds
                    limit = None if seconds is None else seconds + GRACE_SECONDS
                    return await decoder.run(upload, sample_rate, limit)
                except DecoderDied as error:
                    await self._stop(decoder)
                    if decoder.process.returncode == -signal.SIGXCPU:
                        raise _too_slow(seconds) from error
                    _log.warning("a decoder died (exit status %s)", decoder.process.returncode)
                except (TimeoutError, asyncio.CancelledError) as error:
                    await self._stop(decoder)
                    if isinstance(error, asyncio.CancelledError):
                        raise
                    raise _too_slow(seconds) from error
            raise BadAudio("this file crashes the decoder; convert it to WAV or FLAC")
        finally:
            self._turns.done(turn, decoder)

    async def _fit(self, decoder: Decoder | None) -> Decoder:
        """This child, or a fresh one in its place."""
        if decoder is not None and decoder.alive and decoder.jobs < self._max_jobs:
            return decoder
        if decoder is not None:
            await self._stop(decoder)
        try:
            return await self._started()
        except NotReady as error:
            _log_start(error)
            raise

    async def _started(self) -> Decoder:
        try:
            decoder = await Decoder.start(self.limits, self._memory)
        except (DecoderDied, TimeoutError, OSError) as error:
            raise NotReady("no decoder can be started; the server's log says why") from error
        self._all.add(decoder)
        return decoder

    async def _stop(self, decoder: Decoder) -> None:
        await decoder.stop()
        self._all.discard(decoder)
