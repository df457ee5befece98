"""The units of a batcher's work: a job waits, a batch is computed.

Axes: n windows of one job, W samples a window, D values.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Features: TypeAlias = dict[str, NDArray[np.float32]]  # {tap: [n, D]}


@dataclass(slots=True, eq=False)
class WindowJob:
    """Windows [n, W] of one request. The job with the earliest `due` is computed first."""

    windows: Tensor
    taps: tuple[str, ...]
    reply: asyncio.Future[Features]
    since: float
    due: float

    @property
    def samples(self) -> int:
        """The number of samples in all windows."""
        return self.windows.numel()

    @property
    def width(self) -> int:
        """The number of samples in each window."""
        return self.windows.shape[1]


@dataclass(slots=True, eq=False)
class WindowBatch:
    """Jobs that the network computes together; it began at the time `since`."""

    jobs: list[WindowJob]
    since: float

    @property
    def samples(self) -> int:
        """The number of samples in all jobs."""
        return sum(job.samples for job in self.jobs)
