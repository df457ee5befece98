"""Forked processes: a child has none of its parent's threads, and hangs if it needs one of them.

torch's parallel loops (OpenMP) need such threads, and so does an engine of OpenVINO, even to be
freed. A child therefore computes on one thread, with engines that it has built itself.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

import torch

_CAN_FORK: Final = hasattr(os, "register_at_fork")  # Windows cannot


def in_child(action: Callable[[], None]) -> None:
    """Have every process that is forked from now on call this first."""
    if _CAN_FORK:
        os.register_at_fork(after_in_child=action)


def never_free(kept: object) -> None:
    """Keep an object in memory until the process has ended."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


class ProcessLock:
    """A lock within one process; in a forked child it is free, even if the parent held it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        in_child(self._renew)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()


def _compute_alone() -> None:
    torch.set_num_threads(1)


in_child(_compute_alone)
