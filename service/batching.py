"""Equal-length windows of different requests go through the network together.

One batcher a model; batchers of one device share its threads. While the device computes, jobs
gather; when it is free, the group with the oldest job goes next. It waits to grow only while
other requests are known to be on their way (`expecting`), so a lone request never waits.

Windows are never padded to fit a batch: that would change their features.

Axes: n windows of one job, N windows of a batch, W samples a window, D values.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from embedder.errors import EmbedderError
from service.errors import NonFiniteResult, NotReady, Overloaded

Features: TypeAlias = dict[str, NDArray[np.float32]]  # {tap: [n, D]}
# [n, W], ... -> {tap: [N, D]}
Run: TypeAlias = Callable[[Sequence[Tensor], Sequence[str]], dict[str, Tensor]]
Group: TypeAlias = tuple[tuple[str, ...], int]  # taps, W

_SMOOTHING: Final = 0.2
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`max_samples` in one batch, `max_wait` seconds to fill it, `max_queue` jobs waiting.

    With `in_flight` batches at a time, the next one uses what the end of another leaves idle.
    """

    max_samples: int
    max_wait: float
    max_queue: int
    in_flight: int = 1


@dataclass(slots=True, eq=False)
class Job:
    """Windows [n, W] of one request."""

    windows: Tensor
    taps: tuple[str, ...]
    reply: asyncio.Future[Features]
    since: float = field(default_factory=time.monotonic)

    @property
    def samples(self) -> int:
        """What it adds to a batch."""
        return self.windows.numel()


class Batcher:
    """Feeds one model. `observe(windows, seconds)` is told of every batch."""

    def __init__(
        self,
        run: Run,
        executor: Executor,
        limits: BatchLimits,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self.limits = limits
        self._run = run
        self._executor = executor
        self._observe = observe or (lambda *_: None)
        self._groups: dict[Group, deque[Job]] = {}
        self._expected = 0
        self._changed = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._open = False
        self._seconds_per_sample = 0.0

    def start(self) -> None:
        """Begin to work; within a running event loop."""
        self._open = True
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.limits.in_flight)]

    async def close(self) -> None:
        """Stop after the batches in progress; what still waits fails with NotReady."""
        self._open = False
        self._changed.set()
        await asyncio.gather(*self._workers)
        for job in (job for group in self._groups.values() for job in group):
            if not job.reply.done():
                job.reply.set_exception(NotReady("the server is stopping; ask another one"))
        self._groups.clear()

    @property
    def alive(self) -> bool:
        """Whether jobs are being worked on."""
        return self._open and not any(worker.done() for worker in self._workers)

    @property
    def waiting(self) -> int:
        """Jobs that no batch has taken up yet."""
        return sum(len(group) for group in self._groups.values())

    @property
    def backlog_seconds(self) -> float:
        """About how long what waits will take."""
        samples = sum(job.samples for group in self._groups.values() for job in group)
        return samples * self._seconds_per_sample / self.limits.in_flight

    @contextmanager
    def expecting(self) -> Iterator[Callable[[], None]]:
        """One more job is on its way, until this ends or what it gives is called."""
        on_its_way = True
        self._expected += 1

        def arrived() -> None:
            nonlocal on_its_way
            if on_its_way:
                on_its_way = False
                self._expected -= 1
                self._changed.set()

        try:
            yield arrived
        finally:
            arrived()

    async def submit(self, windows: Tensor, taps: Sequence[str]) -> Features:
        """Features of windows [n, W], as `window_features` names them: {tap: [n, D]}.

        Raises
        ------
        Overloaded : too many jobs wait.
        NotReady : the batcher is closed, or closes before this job's turn.
        NonFiniteResult : the network made NaN or Inf of these windows.
        """
        if not self.alive:
            raise NotReady("the server is stopping; ask another one")
        if self.waiting >= self.limits.max_queue:
            raise Overloaded(self.backlog_seconds)
        job = Job(windows, tuple(taps), asyncio.get_running_loop().create_future())
        self._groups.setdefault((job.taps, windows.shape[1]), deque()).append(job)
        self._changed.set()
        return await job.reply

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := await self._collect():
            started = time.monotonic()
            try:
                results = await loop.run_in_executor(self._executor, self._results, batch)
            except Exception as error:  # the worker outlives whatever a batch does
                results = [error] * len(batch)
            self._note(batch, time.monotonic() - started)
            for job, result in zip(batch, results, strict=True):
                if job.reply.done():  # the client has hung up
                    continue
                if isinstance(result, Exception):
                    job.reply.set_exception(result)
                else:
                    job.reply.set_result(result)

    async def _collect(self) -> list[Job]:
        """The next batch; empty when the batcher closes."""
        while self._open:
            self._changed.clear()
            self._forget_cancelled()
            if not self._groups:
                await self._changed.wait()
                continue
            group = min(self._groups, key=lambda key: self._groups[key][0].since)
            patience = self._patience(self._groups[group])
            if patience > 0:
                await _wait(self._changed, patience)
                continue
            return self._take(group)
        return []

    def _patience(self, jobs: deque[Job]) -> float:
        """Seconds that this group may still wait to grow."""
        full = sum(job.samples for job in jobs) >= self.limits.max_samples
        if full or not self._expected:
            return 0.0
        return jobs[0].since + self.limits.max_wait - time.monotonic()

    def _take(self, group: Group) -> list[Job]:
        """The oldest jobs of a group up to `max_samples`, at least one."""
        jobs = self._groups[group]
        batch = [jobs.popleft()]
        size = batch[0].samples
        while jobs and size + jobs[0].samples <= self.limits.max_samples:
            batch.append(jobs.popleft())
            size += batch[-1].samples
        if not jobs:
            del self._groups[group]
        return batch

    def _forget_cancelled(self) -> None:
        self._groups = {
            key: left
            for key, jobs in self._groups.items()
            if (left := deque(job for job in jobs if not job.reply.done()))
        }

    def _results(self, batch: list[Job]) -> list[Features | Exception]:
        """Each job's features or its own error. Runs in a thread of the device."""
        try:
            return self._forward(batch)
        except Exception as error:
            if len(batch) == 1:
                if not isinstance(error, EmbedderError):
                    _log.exception("a job failed in the network")
                return [error]
            return [result for job in batch for result in self._results([job])]

    def _forward(self, batch: list[Job]) -> list[Features | Exception]:
        found = self._run([job.windows for job in batch], batch[0].taps)
        arrays = {tap: values.cpu().numpy() for tap, values in found.items()}  # N D
        results: list[Features | Exception] = []
        first = 0
        for job in batch:
            last = first + len(job.windows)
            features = {tap: values[first:last] for tap, values in arrays.items()}
            results.append(features if _finite(features.values()) else NonFiniteResult())
            first = last
        return results

    def _note(self, batch: list[Job], seconds: float) -> None:
        self._observe(sum(len(job.windows) for job in batch), seconds)
        pace = seconds / sum(job.samples for job in batch)
        old = self._seconds_per_sample
        self._seconds_per_sample = old + _SMOOTHING * (pace - old) if old else pace


def _finite(arrays: Any) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
