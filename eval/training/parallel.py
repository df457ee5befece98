"""Several processes train one model, each on its own batches.

`torchrun -m embedder train distill ...` starts them.

On a few cores this beats more threads: small feature maps do not fill them. Started without
torchrun, there is one process and nothing here does anything.
"""

from __future__ import annotations

import os

import torch
from torch import distributed, nn


def rank() -> int:
    """This process' number; the first one logs and saves."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(model: nn.Module) -> None:
    """Meet the other processes and start from the first one's weights."""
    if world() == 1:
        return
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    for tensor in model.state_dict().values():
        distributed.broadcast(tensor, 0)


def average_gradients(model: nn.Module) -> None:
    """Every process ends up with the mean; all must have gradients for the same parameters."""
    if world() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= world()
    begin = 0
    for gradient in gradients:
        gradient.copy_(flat[begin : begin + gradient.numel()].view_as(gradient))
        begin += gradient.numel()
