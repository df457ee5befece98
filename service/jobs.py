"""What waits in a batcher, and what its network computes.

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
class Job:
    """Windows [n, W] of one request. `due` is when its turn has come."""

    windows: Tensor
    taps: tuple[str, ...]
    reply: asyncio.Future[Features]
    since: float
    due: float

    @property
    def samples(self) -> int:
        """What it adds to a batch."""
        return self.windows.numel()

    @property
    def width(self) -> int:
        """Samples of a window."""
        return self.windows.shape[1]


@dataclass(slots=True, eq=False)
class Batch:
    """Jobs that the network computes now."""

    jobs: list[Job]
    since: float

    @property
    def samples(self) -> int:
        """What the network has to compute."""
        return sum(job.samples for job in self.jobs)
