"""BatchNorm folded into the layer before it: once, when a network is made ready to run."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedder.networks.backbone import Backbone
from embedder.networks.context import ContextGenerator
from embedder.networks.dymn import DynamicBlock


def folded(backbone: Backbone) -> Backbone:
    """A copy of a backbone in eval mode, without BatchNorm and in channels-last order."""
    # Without inference mode: tensors made in it could not be traced later.
    with torch.inference_mode(False), torch.no_grad():
        network = copy.deepcopy(backbone).eval()
        for module in list(network.modules()):
            if isinstance(module, nn.Sequential):
                _fold_sequence(module)
            elif isinstance(module, DynamicBlock | ContextGenerator):
                module.fold_norms()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.requires_grad_(False)


def _fold_sequence(layers: nn.Sequential) -> None:
    for number, (layer, following) in enumerate(pairwise(list(layers))):
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            layers[number] = fuse_conv_bn_eval(layer, following)
            layers[number + 1] = nn.Identity()
