"""BatchNorm folded into the layer before it: once, when a network is made ready to run."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(backbone: Any) -> Any:
    """A copy of an eval-mode backbone without BatchNorm, in channels-last order."""
    with torch.inference_mode(False), torch.no_grad():  # weights stay fit to be traced
        network = copy.deepcopy(backbone).eval()
        for module in list(network.modules()):
            if isinstance(module, nn.Sequential):
                _fold_sequence(module)
            elif hasattr(module, "fold_norms"):
                module.fold_norms()
        return network.to(memory_format=torch.channels_last).requires_grad_(False)


def _fold_sequence(layers: nn.Sequential) -> None:
    for number, (layer, following) in enumerate(pairwise(list(layers))):
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            layers[number] = fuse_conv_bn_eval(layer, following)
            layers[number + 1] = nn.Identity()
