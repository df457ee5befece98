"""BatchNorm folded into the layer before it: once, when a network is made ready to run."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedder.networks.backbone import Backbone


def folded(backbone: Backbone) -> Backbone:
    """A copy of an eval-mode backbone without BatchNorm, in channels-last order."""
    with torch.inference_mode(False), torch.no_grad():  # weights stay fit to be traced
        network = copy.deepcopy(backbone).eval()
        for module in list(network.modules()):
            if isinstance(module, nn.Sequential):
                _fold_sequence(module)
            elif callable(fold_norms := getattr(module, "fold_norms", None)):
                fold_norms()
        # PyTorch's annotations do not know this way to call `to`.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.requires_grad_(False)


def _fold_sequence(layers: nn.Sequential) -> None:
    for number, (layer, following) in enumerate(pairwise(list(layers))):
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            layers[number] = fuse_conv_bn_eval(layer, following)
            layers[number + 1] = nn.Identity()
