"""Several processes train one model, each on its own batches.

`torchrun -m embedder train distill ...` starts them.

On a few cores this beats more threads: small feature maps do not keep many threads busy. Without
torchrun there is one process, and nothing here changes anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

Loss: TypeAlias = Callable[[Any, int], tuple[Tensor, dict[str, float]]]


def rank() -> int:
    """The number of this process; process 0 logs and saves."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """The number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def averaging(model: nn.Module, loss: Loss) -> Loss:
    """The same loss, whose backward pass leaves the mean of all processes' gradients.

    With several processes, this waits for the others and copies weights and buffers of process 0.
    Parameters that a step's loss does not depend on, in any process, keep no gradient.
    """
    if world() == 1:
        return loss
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    joined: Loss = DistributedDataParallel(_LossModule(model, loss), find_unused_parameters=True)
    return joined


class _LossModule(nn.Module):
    """A loss as a module, because torch averages the gradients of what a module's call used."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and numbers for the log."""
        return self._loss(batch, step)
