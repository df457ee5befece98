"""A little DyMN whose contexts matter, and clips that differ in them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from embedder.networks.dymn import DyMN
from embedder.zoo import DyMNConfig
from tests.tensors import noise

SMALL = DyMNConfig(0.1)


def small(**changes: object) -> DyMN:
    """A little DyMN whose random contexts matter."""
    torch.manual_seed(0)
    network = DyMN(replace(SMALL, **changes)).eval()  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        if "residuals" in name or "coef_net" in name or "context_gen.conv" in name:
            nn.init.normal_(parameter, 0, 0.5)
    return network.requires_grad_(False)


def spectrograms(*shape: int) -> Tensor:
    """Clips [B, M, F] that differ in level and in colour, so that their contexts do."""
    levels, slopes = noise(shape[0], 2)[:, :, None, None].unbind(1)
    return noise(*shape) + levels + slopes * torch.linspace(-2, 2, shape[1])[:, None]
