"""torch functions as traces, which run from their first step to the last without Python."""

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
    """A function of one tensor as it runs for tensors of the example's shape."""
    # The tracer and the list of warnings are of the whole process.
    with _tracing, warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # Tracing is deprecated in favour of torch.export, which takes a minute for a network.
        warnings.simplefilter("ignore")
        return torch.jit.trace(  # type: ignore[no-untyped-call]
            function, example, check_trace=False
        )


class TracedLogMel:
    """A front end, traced for windows of the usual lengths.

    It has some 150 steps. One by one, each takes and leaves the interpreter's lock, and waits for
    what else in the process is Python.
    """

    def __init__(self, frontend: LogMel, lengths: Collection[int]) -> None:
        self._frontend = frontend
        self._lengths = frozenset(lengths)
        self._ways: dict[torch.Size, Callable[[Tensor], Tensor]] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, windows: Tensor, usual: int) -> Tensor:
        """[N, W] -> [N, M, F]; `usual` is the N that windows of a usual length mostly come in."""
        if len(windows) != usual or windows.shape[1] not in self._lengths:
            mel: Tensor = self._frontend(windows)
            return mel
        return self._way(windows.shape)(windows)

    def _way(self, shape: torch.Size) -> Callable[[Tensor], Tensor]:
        with self._lock:
            if shape not in self._ways:
                self._ways[shape] = self._frontend  # what comes once is not worth a trace
            elif self._ways[shape] is self._frontend:
                self._ways[shape] = traced(self._frontend, torch.zeros(shape))
            return self._ways[shape]
