"""The pool of decoder processes: untrusted bytes become samples outside of the server's process.

Parsers of audio have bugs, so a child process may die of a file. The pool then starts another one,
and only that file's request fails.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Final

from embedder.audio.libav import DecodeLimits
from embedder.errors import AudioTooLarge, BadAudio
from service.decoder import START_SECONDS, Decoded, Decoder, DecoderDied
from service.errors import NotReady
from service.turns import Turn, Turns

# Beyond the decoder's own limit, for a parser that hangs without using the processor.
GRACE_SECONDS: Final = 2.0
# A job whose client is gone may take this long to finish; killing and starting a process costs
# about as much.
GONE_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


def decoder_version(limits: DecodeLimits) -> str:
    """Everything that decides whether an upload is decoded, and to which samples."""
    return f"av {version('av')} soxr {version('soxr')} {limits}"


class DecoderPool:
    """A fixed number of decoders.

    A decoder that dies, hangs, or has done `max_jobs` is replaced by a new one. `memory` is the
    address space of each in bytes.
    """

    def __init__(self, size: int, limits: DecodeLimits, memory: int, max_jobs: int) -> None:
        self.limits = limits
        self._memory = memory
        self._max_jobs = max_jobs
        self._size = size
        # None stands for a process that is not started yet.
        self._turns: Turns[Decoder | None] = Turns(size)
        self._all: set[Decoder] = set()
        self._running: set[asyncio.Task[Decoded]] = set()

    async def start(self) -> None:
        """Start all processes. A process that cannot be started is tried again when needed.

        Raises
        ------
        NotReady : not a single process can be started.
        """
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
        """An estimate of how long all waiting and running jobs will take."""
        return self._turns.backlog_seconds

    async def close(self) -> None:
        """End all processes; jobs that still run fail."""
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
        self, upload: bytes, sample_rate: int, room: Callable[[], Awaitable[None]] | None = None
    ) -> Decoded:
        """Decode and resample an upload as soon as a decoder is free and `room()` has returned.

        When the decoder dies, the upload is tried once more in a new one: the cause of the first
        death may have been elsewhere (the machine was short of memory), but a file that kills two
        decoders is to blame.

        Raises
        ------
        BadAudio, UnsupportedAudio, AudioTooLarge : as `embedder.audio.decode.load_audio`.
        NotReady : a process is needed and cannot be started.
        """
        # A job that is cancelled while it waits here leaves the line.
        turn, decoder = await self._turns.take(len(upload))
        if room is not None:
            try:
                await room()
            except BaseException:
                self._turns.leave(turn)
                raise
        # Shielded, because a process cannot be interrupted: it must finish before its next job.
        task = asyncio.create_task(self._decode(turn, decoder, upload, sample_rate))
        self._running.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The caller counts memory for this job, so it may not go on before the job has ended.
            await asyncio.wait({task}, timeout=GONE_SECONDS)
            task.cancel()
            await asyncio.wait({task})
            raise

    def _done(self, task: asyncio.Task[Decoded]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as seen: asyncio logs errors that nobody has asked for

    async def _decode(
        self,
        turn: Turn[Decoder | None],
        decoder: Decoder | None,
        upload: bytes,
        sample_rate: int,
    ) -> Decoded:
        try:
            for _ in range(2):
                decoder = await self._usable(decoder)
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

    async def _usable(self, decoder: Decoder | None) -> Decoder:
        """Return this decoder if it can take a job, or a new one instead of it."""
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


def _too_slow(seconds: float | None) -> AudioTooLarge:
    return AudioTooLarge(f"not decoded within {seconds} s; send a shorter clip, or WAV or FLAC")


def _log_start(error: BaseException) -> None:
    reason = error.__cause__ or error
    _log.error("a decoder cannot be started: %s", str(reason) or f"not within {START_SECONDS:g} s")
