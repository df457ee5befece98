"""From an upload to an answer: from the cache, or decoded, cut into windows, batched, collected.

    ask ─ prepare ─ find ─┬─ the cache has it ──────────────────────────────────┬─ Answer
                          └─ compute: decode ─ windows ─ batcher ─ collector ───┘

Axes: S samples, n windows, W samples a window, D values.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, Coroutine, Hashable, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.audio.decode import HTTP_LIMITS
from embedder.errors import BadRequest
from embedder.outputs import Kind, Name, Output
from embedder.streams import output_of
from embedder.windows import cut
from service import cache
from service.answers import Answer, CacheState, Upload
from service.batching import Request
from service.budget import Budget, Cost
from service.cache import Cache, Unavailable
from service.decoder import Decoded
from service.decoding import DecoderPool, decoder_version
from service.errors import Overloaded
from service.limits import Memory, Slots
from service.metrics import Metrics
from service.models import Models, Served
from service.off_loop import OffLoop
from service.settings import Settings
from service.singleflight import SingleFlight

_HASH_ON_LOOP: Final = 1 << 20  # larger uploads are hashed in a thread
# What the cache has of an upload it has met: the fingerprint of its samples, and their number.
_SAMPLES: Final = struct.Struct("<32sQ")
_SAMPLE_BYTES: Final = 4
SMALL_ANSWER: Final = 1 << 18  # bytes: so small that their memory need not be counted
# How long an answer waits for memory that slowly read answers occupy. Its decoded audio waits too.
ANSWER_SECONDS: Final = 5.0


class Pipeline:
    """What all requests of a server share, and the road that each of them takes."""

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

    async def ask(
        self,
        model: str | None,
        name: Name,
        kind: Kind = "scene",
        window_ms: float | None = None,
        hop_ms: float | None = None,
        taps: Iterable[str] | None = None,
    ) -> tuple[Served, Output]:
        """The model of this name, loaded if need be, and its output; None stands for defaults.

        Raises
        ------
        UnknownModel, BadRequest, UnknownTap : there is no such model or output.
        """
        served = await self.models.get(model)
        longest = self.settings.max_window_ms
        if window_ms is not None and window_ms > longest:
            raise BadRequest(f"window_ms is {window_ms:g}; choose up to {longest:g}")
        return served, output_of(served.model, name, kind, window_ms, hop_ms, taps)

    async def prepare(self, data: bytes, served: Served, output: Output) -> Upload:
        """The upload with its key in the cache; nothing but the hash of the bytes is computed."""
        if len(data) <= _HASH_ON_LOOP:
            fingerprint = cache.fingerprint(data)
        else:
            fingerprint = await asyncio.to_thread(cache.fingerprint, data)
        key = cache.upload_key(fingerprint, self._decoder, served.model.sample_rate)
        return Upload(data, key, served, output)

    async def answer(self, data: bytes, served: Served, output: Output) -> Answer:
        """The answer, from the cache or computed."""
        upload = await self.prepare(data, served, output)
        known = await self.find(upload)
        return known if isinstance(known, Answer) else await self.compute(upload, known)

    async def find(self, upload: Upload) -> Answer | CacheState:
        """The answer from the cache, or why there is none: a miss, or a cache that is away."""
        known = await self._find(upload)
        self._metrics.lookup(known.cache if isinstance(known, Answer) else known)
        return known

    async def _find(self, upload: Upload) -> Answer | CacheState:
        try:
            record = cache.decode(await self.cache.get(upload.key), self.settings.cache_value_bytes)
            if record is None or record.dtype != np.uint8 or record.shape != (_SAMPLES.size,):
                return "miss"
            fingerprint, samples = _SAMPLES.unpack(record.tobytes())
            values = await self._result(_result_key(fingerprint, upload), upload, samples)
        except Unavailable:
            return "bypass"
        if values is None:
            return "miss"
        return Answer(upload.served, upload.output, values, samples, "hit")

    async def _result(self, key: str, upload: Upload, samples: int) -> NDArray[np.float32] | None:
        """The values that the cache has there, if they can be an answer; it may be Unavailable."""
        values = cache.decode(await self.cache.get(key), self.settings.cache_value_bytes)
        model = upload.served.model
        shape = upload.output.shape(samples, model.tap_sizes, len(model.labels))
        if values is None or values.dtype != np.float32 or values.shape != shape:
            return None
        return values if np.isfinite(values).all() else None

    def check_room(self, upload: Upload) -> None:
        """Raise Overloaded if no slot is free, before `compute` begins any work."""
        if _flight(upload) not in self.single_flight:
            self.slots.check()

    async def compute(self, upload: Upload, state: CacheState) -> Answer:
        """Decode and compute; identical uploads at the same time share the work."""
        return await self.single_flight.join(_flight(upload), lambda: self._compute(upload, state))

    async def _compute(self, upload: Upload, state: CacheState) -> Answer:
        rate = upload.served.model.sample_rate
        # The most that this audio can take, until its length is known.
        most = round(self.settings.max_seconds * rate) * _SAMPLE_BYTES
        with (
            self.slots.take(),
            upload.served.batcher.expecting() as request,
            self.audio.hold() as audio,
        ):
            started = time.perf_counter()
            decoded = await self.decoders.decode(upload.data, rate, lambda: audio.wait(most))
            audio.keep(decoded.samples.nbytes)
            cost = Cost.of(upload.output, decoded.samples.size, upload.served.model)
            self._budget.check(cost)
            timings = {"decode": time.perf_counter() - started}
            key = _result_key(decoded.fingerprint, upload)
            values = await self._known(key, upload, decoded, state)
            if values is not None:
                state = "hit"
            else:
                width = upload.output.width(decoded.samples.size)
                request.arrived(cost.windows * width, width)
                started = time.perf_counter()
                values = await self._held(cost, self._infer(decoded.samples, upload, request))
                timings["infer"] = time.perf_counter() - started
        self._remember(upload, decoded, key, values)
        for stage, seconds in timings.items():
            self._metrics.stage(stage, seconds)
        samples = decoded.samples.size
        return Answer(upload.served, upload.output, values, samples, state, timings)

    async def _known(
        self, key: str, upload: Upload, decoded: Decoded, state: CacheState
    ) -> NDArray[np.float32] | None:
        """The values of the same samples, if these came in other bytes before."""
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
        """[S] -> the values of the output."""
        collector = upload.output.collector(samples.size)
        async with aclosing(_features(samples, upload, request)) as groups:
            async for group in groups:
                collector.push(group)
        return collector.finish()

    async def _held(
        self, cost: Cost, work: Coroutine[Any, Any, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Do the work; the memory of its values is counted until their last reader is done."""
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
        record = np.frombuffer(_SAMPLES.pack(decoded.fingerprint, decoded.samples.size), np.uint8)
        if values.nbytes <= self.settings.cache_value_bytes:
            self.cache.put(upload.key, cache.encode(record))
            self.cache.put(key, cache.encode(values))

    def _backlog_seconds(self) -> float:
        """About how long it takes to answer all requests: decoders and network work in parallel."""
        network = sum(served.batcher.backlog_seconds for served in self.models.loaded.values())
        return max(self.decoders.backlog_seconds, network)


async def _features(
    samples: NDArray[np.float32], upload: Upload, request: Request
) -> AsyncGenerator[NDArray[np.float32], None]:
    """The joined features of a clip's windows [n, D], or of frames [n, t, D], as batches end."""
    batcher, taps = upload.served.batcher, upload.output.taps
    async with aclosing(_windows(samples, upload.output, batcher.limits.max_samples)) as groups:
        async for windows in groups:
            features = await request.submit(windows, taps)
            yield np.concatenate([features[tap] for tap in taps], axis=-1)


async def _windows(
    samples: NDArray[np.float32], output: Output, batch_samples: int
) -> AsyncGenerator[Tensor, None]:
    """The windows of a clip [S], some [n, W] at a time, each small enough for one batch."""
    wave = torch.from_numpy(samples)[None]
    if output.whole(samples.size):
        yield wave
        return
    blocks = iter(torch.split(wave, batch_samples, dim=1))
    steps = OffLoop(group[0] for group in cut(blocks, output.plan, batch_samples))
    try:
        async for windows in steps:
            yield windows
    finally:
        steps.close()


def _flight(upload: Upload) -> Hashable:
    return upload.key, upload.served.identity, upload.output


def _result_key(fingerprint: bytes, upload: Upload) -> str:
    asked = upload.output.key()
    return cache.result_key(fingerprint, upload.served.identity, (*asked, *asked.values()))
