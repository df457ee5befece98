"""Renew the statistics of BatchNorm layers that were trained with fixed ones.

Axes: B batch, C channels, f frequency, t time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def settle(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every BatchNorm the mean and variance of its input over these batches.

    Scale and shift change with them, so that in eval mode the network's outputs stay the same. In
    training mode, which uses each batch's own statistics, outputs are now nearly the same too.
    """
    moments: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]] = {}

    def watch(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        x = inputs[0].double()  # B C f t
        sums, count = moments.setdefault(norm, (x.new_zeros(2, x.shape[1]), x.new_zeros(())))
        sums += torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])
        count += 1

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(watch) for norm in norms]
    model.eval()
    for batch in batches:
        model(batch)
    for hook in hooks:
        hook.remove()
    for norm, (sums, count) in moments.items():
        mean, square = sums / count
        _restate(norm, mean, (square - mean.square()).clamp(min=0.0))


def _restate(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Set the statistics of a BatchNorm, and the scale and shift that keep its outputs."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    old_mean, old_scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps).sqrt()
    slope = norm.weight.double() / old_scale
    norm.bias.copy_(norm.bias.double() + slope * (mean - old_mean))
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
