"""From an upload to an answer: cached, or decoded, cut into windows, batched and joined.

Axes: S samples, n windows, W samples a window, D values.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, Coroutine, Hashable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.audio.decode import HTTP_LIMITS
from embedder.errors import BadRequest
from embedder.windows import cut
from service import cache
from service.answers import Answer, CacheState, ResolvedTask, Task, Upload
from service.batching import Request
from service.budget import Budget, Cost
from service.cache import Cache, Unavailable
from service.decoding import Decoded, DecoderPool, decoder_version
from service.errors import Overloaded
from service.limits import Memory, Slots
from service.metrics import Metrics
from service.models import Models
from service.off_loop import OffLoop
from service.settings import Settings
from service.singleflight import SingleFlight

_HASH_ON_LOOP: Final = 1 << 20  # larger uploads are hashed in a thread
_PCM: Final = struct.Struct("<32sQ")  # fingerprint and number of samples
_SAMPLE_BYTES: Final = 4
SMALL_ANSWER: Final = 1 << 18  # of those, all slots together hold little
# Longer, and clients that read slowly would keep those waiting who hold decoded audio.
ANSWER_SECONDS: Final = 5.0


class Pipeline:
    """All that requests share."""

    def __init__(self, settings: Settings, models: Models, store: Cache, metrics: Metrics) -> None:
        limits = replace(
            HTTP_LIMITS,
            max_seconds=settings.max_seconds,
            max_bytes=settings.max_bytes,
            max_wall_seconds=settings.max_decode_seconds,
        )
        self.settings = settings
        self.models = models
        self.cache = store
        self.decoders = DecoderPool(
            settings.decode_workers, limits, settings.decode_memory, settings.decode_jobs
        )
        self.uploads = Memory(settings.max_memory, self._backlog_seconds)
        self.slots = Slots(settings.max_requests, self._backlog_seconds)
        self.audio = Memory(settings.max_memory)
        self.answers = Memory(settings.max_memory)
        self._budget = Budget.of(settings)
        self._metrics = metrics
        self._decoder = decoder_version(limits)
        self.single_flight: SingleFlight[Answer] = SingleFlight()

    async def prepare(self, data: bytes, model: str | None, task: Task) -> Upload:
        """Check what can be checked before any work is done."""
        served = await self.models.get(model)
        longest = self.settings.max_window_ms
        if task.window_ms is not None and task.window_ms > longest:
            raise BadRequest(f"window_ms is {task.window_ms:g}; choose up to {longest:g}")
        if len(data) <= _HASH_ON_LOOP:
            fingerprint = cache.fingerprint(data)
        else:
            fingerprint = await asyncio.to_thread(cache.fingerprint, data)
        key = cache.upload_key(fingerprint, self._decoder, served.model.sample_rate)
        return Upload(data, key, served, task.resolved(served))

    async def answer(self, data: bytes, model: str | None, task: Task) -> Answer:
        """From the cache, or computed."""
        upload = await self.prepare(data, model, task)
        found = await self.find(upload)
        return found if isinstance(found, Answer) else await self.compute(upload, found)

    async def find(self, upload: Upload) -> Answer | CacheState:
        """The answer from the cache, or how the cache did not have it."""
        found = await self._find(upload)
        self._metrics.lookup(found.cache if isinstance(found, Answer) else found)
        return found

    async def _find(self, upload: Upload) -> Answer | CacheState:
        try:
            pcm = cache.decode(await self.cache.get(upload.key), self.settings.cache_value_bytes)
            if pcm is None or pcm.dtype != np.uint8 or pcm.shape != (_PCM.size,):
                return "miss"
            fingerprint, samples = _PCM.unpack(pcm.tobytes())
            values = await self._result(_result_key(fingerprint, upload), upload, samples)
        except Unavailable:
            return "bypass"
        if values is None:
            return "miss"
        return Answer(upload.served, upload.task, values, samples, "hit")

    async def _result(self, key: str, upload: Upload, samples: int) -> NDArray[np.float32] | None:
        """What the cache has there, if it can be an answer; Unavailable if the cache is."""
        values = cache.decode(await self.cache.get(key), self.settings.cache_value_bytes)
        shape = upload.task.shape(samples, upload.served.model)
        if values is None or values.dtype != np.float32 or values.shape != shape:
            return None
        return values if np.isfinite(values).all() else None

    def check_room(self, upload: Upload) -> None:
        """Overloaded at once, where `compute` would be after it has made its tasks."""
        if _flight(upload) not in self.single_flight:
            self.slots.check()

    async def compute(self, upload: Upload, state: CacheState) -> Answer:
        """The answer by decoding and inference; identical uploads at one time share one."""
        return await self.single_flight.join(_flight(upload), lambda: self._compute(upload, state))

    async def _compute(self, upload: Upload, state: CacheState) -> Answer:
        rate = upload.served.model.sample_rate
        # As much as this audio could take, until it is known how much it does.
        most = round(self.settings.max_seconds * rate) * _SAMPLE_BYTES
        with (
            self.slots.take(),
            upload.served.batcher.expecting() as request,
            self.audio.hold() as audio,
        ):
            started = time.perf_counter()
            decoded = await self.decoders.decode(upload.data, rate, lambda: audio.wait(most))
            audio.keep(decoded.samples.nbytes)
            cost = Cost.of(upload.task, decoded.samples.size, upload.served.model)
            self._budget.check(cost)
            timings = {"decode": time.perf_counter() - started}
            key = _result_key(decoded.fingerprint, upload)
            values = await self._known(key, upload, decoded, state)
            if values is not None:
                state = "hit"
            else:
                width = upload.task.width(decoded.samples.size)
                request.arrived(cost.windows * width, width)
                started = time.perf_counter()
                values = await self._held(cost, self._infer(decoded.samples, upload, request))
                timings["infer"] = time.perf_counter() - started
        self._remember(upload, decoded, key, values)
        for stage, seconds in timings.items():
            self._metrics.stage(stage, seconds)
        samples = decoded.samples.size
        return Answer(upload.served, upload.task, values, samples, state, timings)

    async def _known(
        self, key: str, upload: Upload, decoded: Decoded, state: CacheState
    ) -> NDArray[np.float32] | None:
        """What the cache has of the same samples, which came in other bytes before."""
        if state == "bypass":
            return None
        try:
            values = await self._result(key, upload, decoded.samples.size)
        except Unavailable:
            return None
        if values is not None:
            self._metrics.lookup("hit")
        return values

    async def _infer(
        self, samples: NDArray[np.float32], upload: Upload, request: Request
    ) -> NDArray[np.float32]:
        """[S] -> [D], [n, D] for timestamps, or [T, N] for events."""
        task, rate = upload.task, upload.served.model.sample_rate
        count = task.plan.n_windows(samples.size)
        if task.asked.kind == "scene":
            total: NDArray[np.float64] = np.zeros(1)
            async with aclosing(_features(samples, upload, request)) as groups:
                async for group in groups:
                    total = total + group.sum(0, dtype=np.float64)
            return (total / count).astype(np.float32)
        rows: NDArray[np.float32] | None = None
        first = 0
        async with aclosing(_features(samples, upload, request)) as groups:
            async for group in groups:
                if rows is None:  # made whole at once: to join parts would take their memory again
                    rows = np.empty((count, *group.shape[1:]), np.float32)
                rows[first : first + len(group)] = group
                first += len(group)
        assert rows is not None
        return task.joined(rows, samples.size, rate)

    async def _held(
        self, cost: Cost, work: Coroutine[Any, Any, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """The result of the work, whose memory is counted until its last reader is done."""
        if cost.bytes <= SMALL_ANSWER:
            return await work
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.answers.wait(cost.bytes)
        except BaseException as error:
            work.close()
            if isinstance(error, TimeoutError):
                raise Overloaded(ANSWER_SECONDS) from error
            raise
        try:
            values = await work
        except BaseException:
            self.answers.give_back(cost.bytes)
            raise
        self.answers.hold_for(values, cost.bytes)
        return values

    def _remember(
        self, upload: Upload, decoded: Decoded, key: str, values: NDArray[np.float32]
    ) -> None:
        pcm = np.frombuffer(_PCM.pack(decoded.fingerprint, decoded.samples.size), np.uint8)
        if values.nbytes <= self.settings.cache_value_bytes:
            self.cache.put(upload.key, cache.encode(pcm))
            self.cache.put(key, cache.encode(values))

    def _backlog_seconds(self) -> float:
        """About how long all requests that are held take: decoders and network work at once."""
        network = sum(one.batcher.backlog_seconds for one in self.models.loaded.values())
        return max(self.decoders.backlog_seconds, network)


async def _features(
    samples: NDArray[np.float32], upload: Upload, request: Request
) -> AsyncGenerator[NDArray[np.float32], None]:
    """The joined features of a clip's windows [n, D], some windows at a time."""
    batcher, taps = upload.served.batcher, upload.task.taps
    async with aclosing(_windows(samples, upload.task, batcher.limits.max_samples)) as groups:
        async for windows in groups:
            features = await request.submit(windows, taps)
            yield np.concatenate([features[tap] for tap in taps], axis=1)


async def _windows(
    samples: NDArray[np.float32], task: ResolvedTask, batch_samples: int
) -> AsyncGenerator[Tensor, None]:
    """The windows of a clip [S], some [n, W] at a time, each small enough for one batch."""
    wave = torch.from_numpy(samples)[None]
    if task.whole(samples.size):
        yield wave
        return
    blocks = iter(torch.split(wave, batch_samples, dim=1))
    steps = OffLoop(group[0] for group in cut(blocks, task.plan, batch_samples))
    try:
        async for windows in steps:
            yield windows
    finally:
        steps.close()


def _flight(upload: Upload) -> Hashable:
    return upload.key, upload.served.identity, upload.task


def _result_key(fingerprint: bytes, upload: Upload) -> str:
    asked = upload.task.asked
    task = (asked.output, asked.kind, asked.window_ms, asked.hop_ms, *upload.task.taps)
    return cache.result_key(fingerprint, upload.served.identity, task)
