"""What a process may use and keeps: cores (by affinity and the container's quota), freed memory."""

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
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt's names
_KEPT: Final = 32 << 20
_LARGEST: Final = 32 << 20  # that glibc takes
_ARENAS: Final = 4  # each keeps what was freed in it; by default there are eight a core
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


def keep_freed_memory() -> None:
    """For processes that make arrays of megabytes again and again, as decoders and networks do.

    Programs call it: our commands, the server, decoders, or your own. A library leaves alone how
    its process takes memory, so that loading a model does not.

    By default glibc returns each array to the kernel, and getting its pages back takes as long as
    decoding a clip, and a sixth of embedding it. Without glibc, nothing changes.
    """
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_ARENA_MAX, _ARENAS)


def return_freed_memory() -> None:
    """Give all pages that hold nothing back to the kernel, from the middle of the heap as well.

    glibc by itself returns only the top of its heaps: a long-lived process of many sizes of arrays
    keeps a tenth of its memory in holes. Takes milliseconds; the next large arrays take a little
    longer. Without glibc, nothing happens.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _quota(cores: int) -> int:
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else math.ceil(int(quota) / int(period))
