"""How many cores this process may use: affinity and the container's quota, not the machine's."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

from embedder.errors import BadRequest

VARIABLE: Final = "EMBEDDER_THREADS"
WAIT_POLICY: Final = "OMP_WAIT_POLICY"
_CGROUP_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # "max 100000" or "150000 100000"


def available_cores() -> int:
    """Cores this process may use, at least one; a quota of 1.5 cores counts as 2."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores, _quota(cores)))


def threads() -> int:
    """Threads for the network: EMBEDDER_THREADS where it is set, else the available cores."""
    named = os.environ.get(VARIABLE)
    if not named:
        return available_cores()
    if not named.isdecimal() or int(named) < 1:
        raise BadRequest(f"{VARIABLE} is {named!r}; set a number of threads from 1 on")
    return int(named)


def wait_asleep() -> None:
    """Have torch's idle threads sleep, not spin; call this before torch is imported.

    Spinning takes cores from decoders, other runtimes' threads and other processes. Where these
    are busy, a network that takes 20 ms a clip takes 100.
    """
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")


def _quota(cores: int) -> int:
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else math.ceil(int(quota) / int(period))
