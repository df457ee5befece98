"""Forked processes: a child has none of its parent's threads, and waits for ever if it needs one.

torch's parallel loops (OpenMP) need them, and so does an engine of OpenVINO, even to be freed. So a
child computes on one thread, and with engines that it made itself.
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
    """Do this first in every process that is forked from here on."""
    if _CAN_FORK:
        os.register_at_fork(after_in_child=action)


def never_free(thing: object) -> None:
    """Keep an object for as long as the process lives, its very end included."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


class ProcessLock:
    """A lock of one process: in a forked child it is free, even if the parent held it."""

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
