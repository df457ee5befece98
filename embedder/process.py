"""Limits of a process: the cores it may use (by affinity and quota), the freed memory it keeps."""

from __future__ import annotations

import ctypes
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from embedder.errors import BadRequest

VARIABLE: Final = "EMBEDDER_THREADS"
WAIT_POLICY: Final = "OMP_WAIT_POLICY"
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt's parameters
_KEPT: Final = 32 << 20  # bytes of freed memory
_LARGEST: Final = 8 << 20  # bytes, the log-mels of a clip; larger arrays leave no holes in the heap
_ARENAS: Final = 2  # each keeps the memory freed in it; by default there are eight for each core
_CGROUP_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # "max 100000" or "150000 100000"


def available_cores() -> int:
    """How many cores this process may use, at least 1; a quota of 1.5 cores counts as 2."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores, _quota(cores)))


def threads() -> int:
    """How many threads the network takes: EMBEDDER_THREADS if it is set, else the available cores.

    Raises
    ------
    BadRequest : EMBEDDER_THREADS is no number from 1 on.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return available_cores()
    if not named.isdecimal() or int(named) < 1:
        raise BadRequest(f"{VARIABLE} is {named!r}; set a number of threads from 1 on")
    return int(named)


def wait_asleep() -> None:
    """Make torch's idle threads sleep, not spin; call this before torch is imported.

    Spinning takes cores from decoders, from the threads of other engines and from other processes.
    While these are busy, a network that needs 20 ms for a clip takes 100.
    """
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory, for processes that need megabytes again and again.

    Programs call it: our commands, the server, its decoders, or your own. Loading a model does
    not, because a library leaves alone how its process takes memory.

    By default glibc returns each large array to the kernel, and getting its pages back takes as
    long as decoding a clip, and a sixth of embedding it. Without glibc, this does nothing.
    """
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_ARENA_MAX, _ARENAS)


def return_freed_memory() -> None:
    """Give all free pages back to the kernel, also those in the middle of the heap.

    By itself, glibc returns only the top of its heaps, and a long-lived process with arrays of many
    sizes keeps a tenth of its memory in holes. This takes milliseconds, and makes the next large
    arrays a little slower. Without glibc, it does nothing.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _quota(cores: int) -> int:
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else math.ceil(int(quota) / int(period))
