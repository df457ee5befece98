"""A batcher for a test, and jobs for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import torch

from service.batching import Batcher, BatchLimits, Run
from tests.service_kit import FakeModel, eventually

MEL = ("mel",)


@asynccontextmanager
async def batching(
    run: Run,
    max_samples: int = 1000,
    max_wait: float = 0,
    max_queue: int = 100,
    in_flight: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Batcher]:
    limits = BatchLimits(max_samples, max_wait, max_queue, in_flight)
    with ThreadPoolExecutor(in_flight) as executor:
        batcher = Batcher(run, executor, limits, clock=clock)
        batcher.start()
        try:
            yield batcher
        finally:
            await batcher.close()


def windows(value: float, count: int = 1, width: int = 100) -> torch.Tensor:
    return torch.full((count, width), float(value))


async def blocked(model: FakeModel, batcher: Batcher) -> asyncio.Task[object]:
    """Keep the device busy until `model.may_run` is set, so that jobs gather."""
    model.may_run.clear()
    calls = model.calls
    task = asyncio.ensure_future(batcher.submit(windows(0, width=3), MEL))
    await eventually(lambda: model.calls > calls)
    return task


class Clockwork(FakeModel):
    """A model that takes a known time for every sample, on a clock of its own."""

    def __init__(self, seconds_per_sample: float = 0.0) -> None:
        super().__init__()
        self.now = 0.0
        self._seconds_per_sample = seconds_per_sample

    def __call__(self) -> float:
        return self.now

    def window_features(
        self, batch: Sequence[torch.Tensor], taps: Iterable[str]
    ) -> dict[str, torch.Tensor]:
        features = super().window_features(batch, taps)
        self.now += self._seconds_per_sample * sum(windows.numel() for windows in batch)
        return features
