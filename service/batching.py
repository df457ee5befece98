"""A batcher sends windows of different requests through the network together.

There is one batcher for each model; batchers of one device share its threads. Jobs gather while
the device computes. When it is free, the group with the most urgent job goes next: short jobs
overtake long ones, within bounds (`service.pace`). The group waits for more jobs only while other
requests are known to be on their way (`expecting`), so a lone request never waits.

Only windows of equal length are joined. Windows are never padded to fit a batch: that would change
their features.

Axes: n windows of one job, N windows of a batch, W samples a window, D values.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from embedder.errors import EmbedderError
from service.errors import NonFiniteResult, NotReady, Overloaded
from service.jobs import Features, WindowBatch, WindowJob
from service.pace import Pace

# [n, W], ... -> {tap: [N, D]}
Run: TypeAlias = Callable[[Sequence[Tensor], Sequence[str]], dict[str, Tensor]]
Group: TypeAlias = tuple[tuple[str, ...], int]  # taps, W

_SMOOTHING: Final = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may be, how long it may wait to grow, and how many jobs may wait.

    `max_samples` counts one batch, `max_wait` is in seconds, `max_queue` counts jobs. The device
    computes `in_flight` batches at a time: the cores that one leaves idle work for the other.
    """

    max_samples: int
    max_wait: float
    max_queue: int
    in_flight: int = 1


class Request:
    """A request that will submit windows: first on its way, then known, then submitted in pieces.

    `owed` is the number of samples that are known but not submitted yet.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.on_its_way = True
        self.owed = 0
        self.width = 0

    def arrived(self, samples: int = 0, width: int = 0) -> None:
        """Tell how many samples will be submitted, in windows of how many; 0 if none will."""
        if self.on_its_way:
            self.on_its_way = False
            self.owed, self.width = samples, width
            self._batcher.note_arrival(samples)

    async def submit(self, windows: Tensor, taps: Sequence[str]) -> Features:
        """Submit the next piece; see `Batcher.submit`."""
        self.owed = max(0, self.owed - windows.numel())
        return await self._batcher.submit(windows, taps)


class Batcher:
    """Computes the jobs of one model. After each batch it calls `observe(windows, seconds)`."""

    def __init__(
        self,
        run: Run,
        executor: Executor,
        limits: BatchLimits,
        observe: Callable[[int, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._run = run
        self._executor = executor
        self._observe = observe or (lambda *_: None)
        self._groups: dict[Group, list[WindowJob]] = {}  # the most urgent job first
        self._running: list[WindowBatch] = []
        self._requests: set[Request] = set()
        self._typical = 0.0  # running mean of the samples of a request
        self._changed = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._open = False
        self._pace = Pace()

    def start(self) -> None:
        """Start the workers. An event loop must be running."""
        self._open = True
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.limits.in_flight)]

    async def close(self) -> None:
        """Finish the batches in progress; jobs that still wait fail with NotReady."""
        self._open = False
        self._changed.set()
        await asyncio.gather(*self._workers)
        for job in (job for group in self._groups.values() for job in group):
            if not job.reply.done():
                job.reply.set_exception(NotReady("the server is stopping; ask another one"))
        self._groups.clear()

    @property
    def alive(self) -> bool:
        """Whether all workers are running."""
        return self._open and not any(worker.done() for worker in self._workers)

    @property
    def waiting(self) -> int:
        """The number of jobs that are in no batch yet."""
        return sum(len(group) for group in self._groups.values())

    @property
    def abandoned(self) -> int:
        """The number of jobs that are being computed although their clients are gone."""
        return sum(job.reply.cancelled() for batch in self._running for job in batch.jobs)

    @property
    def oldest_seconds(self) -> float:
        """The seconds since the oldest running batch began; 0 if none is running."""
        now = self._clock()
        return max((now - batch.since for batch in self._running), default=0.0)

    @property
    def backlog_seconds(self) -> float:
        """An estimate of how long all known work will take, submitted or not."""
        return self._work_seconds() / self.limits.in_flight

    def _work_seconds(self) -> float:
        now, seconds = self._clock(), 0.0
        for job in (job for group in self._groups.values() for job in group):
            seconds += self._pace.seconds(job.width, job.samples)
        for batch in self._running:
            whole = self._pace.seconds(batch.jobs[0].width, batch.samples)
            seconds += max(0.0, whole - (now - batch.since))
        for request in self._requests:
            samples = round(self._typical) if request.on_its_way else request.owed
            seconds += self._pace.seconds(request.width or samples, samples)
        return seconds

    @contextmanager
    def expecting(self) -> Iterator[Request]:
        """Announce a request: a batch may wait for it until it arrives or this context ends."""
        request = Request(self)
        self._requests.add(request)
        try:
            yield request
        finally:
            self._requests.discard(request)
            self._changed.set()

    def note_arrival(self, samples: int) -> None:
        """Take note that an announced request has arrived, and of its size unless that is 0."""
        if samples:
            self._typical += _SMOOTHING * (samples - self._typical) if self._typical else samples
        self._changed.set()

    async def submit(self, windows: Tensor, taps: Sequence[str]) -> Features:
        """Compute the features {tap: [n, D]} of windows [n, W].

        Raises
        ------
        Overloaded : too many jobs wait.
        NotReady : the batcher is closed, or closes before it computes this job.
        NonFiniteResult : the network gives NaN or Inf for these windows.
        """
        if not self.alive:
            raise NotReady("the server is stopping; ask another one")
        if self.waiting + self.abandoned >= self.limits.max_queue:
            raise Overloaded(self.backlog_seconds)
        now = self._clock()
        due = self._pace.due(now, windows.shape[1], windows.numel())
        job = WindowJob(windows, tuple(taps), asyncio.get_running_loop().create_future(), now, due)
        group = (job.taps, job.width)
        insort(self._groups.setdefault(group, []), job, key=lambda other: other.due)
        self._changed.set()
        try:
            return await job.reply
        except asyncio.CancelledError:
            self._forget(group, job)
            raise

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := await self._collect():
            self._running.append(batch)
            try:
                results = await loop.run_in_executor(self._executor, self._results, batch.jobs)
            except Exception as error:  # a failed batch must not end the worker
                results = [error] * len(batch.jobs)
            finally:
                self._running.remove(batch)
            self._note(batch)
            for job, result in zip(batch.jobs, results, strict=True):
                if job.reply.done():  # the client has hung up
                    continue
                if isinstance(result, Exception):
                    job.reply.set_exception(result)
                else:
                    job.reply.set_result(result)

    async def _collect(self) -> WindowBatch | None:
        """Wait for the next batch; return None when the batcher closes."""
        while self._open:
            self._changed.clear()
            if not self._groups:
                await self._changed.wait()
                continue
            group = min(self._groups, key=lambda key: self._groups[key][0].due)
            patience = self._patience(self._groups[group])
            if patience > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), patience)
                continue
            return self._take(group)
        return None

    def _patience(self, jobs: list[WindowJob]) -> float:
        """Return how many seconds this group may still wait for more jobs."""
        full = sum(job.samples for job in jobs) >= self.limits.max_samples
        if full or not any(request.on_its_way for request in self._requests):
            return 0.0
        return jobs[0].since + self.limits.max_wait - self._clock()

    def _take(self, group: Group) -> WindowBatch:
        """Take the most urgent jobs of a group: at least one, up to `max_samples`."""
        jobs = self._groups[group]
        count, size = 1, jobs[0].samples
        while count < len(jobs) and size + jobs[count].samples <= self.limits.max_samples:
            size += jobs[count].samples
            count += 1
        batch, jobs[:count] = WindowBatch(jobs[:count], self._clock()), []
        if not jobs:
            del self._groups[group]
        return batch

    def _forget(self, group: Group, job: WindowJob) -> None:
        """Drop a job whose client is gone, unless it is in a batch already."""
        jobs = self._groups.get(group, [])
        if job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._groups[group]

    def _results(self, jobs: list[WindowJob]) -> list[Features | Exception]:
        """Return the features or the error of each job. Runs in a thread of the device."""
        try:
            return self._forward(jobs)
        except Exception as error:
            if len(jobs) == 1:
                if not isinstance(error, EmbedderError):
                    _log.exception("a job failed in the network")
                return [error]
            return [result for job in jobs for result in self._results([job])]

    def _forward(self, jobs: list[WindowJob]) -> list[Features | Exception]:
        tensors = self._run([job.windows for job in jobs], jobs[0].taps)
        arrays = {tap: values.cpu().numpy() for tap, values in tensors.items()}  # N D
        results: list[Features | Exception] = []
        first = 0
        for job in jobs:
            last = first + len(job.windows)
            features = {tap: values[first:last] for tap, values in arrays.items()}
            results.append(features if _finite(features.values()) else NonFiniteResult())
            first = last
        return results

    def _note(self, batch: WindowBatch) -> None:
        seconds = self._clock() - batch.since
        self._observe(sum(len(job.windows) for job in batch.jobs), seconds)
        self._pace.note(batch.jobs[0].width, batch.samples, seconds)


def _finite(arrays: Iterable[NDArray[np.float32]]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)
