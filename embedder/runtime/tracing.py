"""Traces of torch functions, which run from their first step to their last without Python."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection
from typing import Any, Final

import torch
from torch import Tensor

from embedder.frontend import LogMel
from embedder.runtime.forks import ProcessLock

_tracing: Final = ProcessLock()


def traced(function: Callable[[Tensor], Any], example: Tensor) -> Any:
    """The trace of a function of one tensor, for tensors of the example's shape."""
    # The whole process shares the tracer and the list of warnings.
    with _tracing, warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # torch deprecates tracing in favour of torch.export, which takes a minute for a network.
        warnings.simplefilter("ignore")
        return torch.jit.trace(  # type: ignore[no-untyped-call]
            function, example, check_trace=False
        )


class TracedLogMel:
    """A front end that is traced for windows of the usual lengths.

    It has some 150 steps. Without a trace, each takes and releases the interpreter's lock, and
    waits for other threads that run Python.
    """

    def __init__(self, frontend: LogMel, lengths: Collection[int]) -> None:
        self._frontend = frontend
        self._lengths = frozenset(lengths)
        self._by_shape: dict[torch.Size, Callable[[Tensor], Tensor]] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, windows: Tensor, usual: int) -> Tensor:
        """Windows [N, W] -> log-mel [N, M, F]; only batches with N == `usual` are traced."""
        if len(windows) != usual or windows.shape[1] not in self._lengths:
            mel: Tensor = self._frontend(windows)
            return mel
        return self._function(windows.shape)(windows)

    def _function(self, shape: torch.Size) -> Callable[[Tensor], Tensor]:
        """The front end for a shape: untraced when the shape comes first, a trace from then on."""
        with self._lock:
            if shape not in self._by_shape:
                self._by_shape[shape] = self._frontend
            elif self._by_shape[shape] is self._frontend:
                self._by_shape[shape] = traced(self._frontend, torch.zeros(shape))
            return self._by_shape[shape]
