"""Sequence models over frames, of two layers each (arXiv 2503.11373, II-B).

Axes: B batch, T frames, I input values a frame, D model dimension.
Attribute names are the published file format and must not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.networks.attention import (
    GatedAttention,
    HybridLayer,
    NormedStack,
    RMSNorm,
    TransformerLayer,
)
from embedder.networks.mamba import Mamba2
from embedder.zoo import SequenceName

LAYERS: Final = 2
TCN_DILATIONS: Final = (1, 2, 4, 8, 16)


class BiGRU(nn.Module):
    """A bidirectional GRU of two layers: [B, T, I] -> [B, T, 2 D]."""

    def __init__(self, in_features: int, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(in_features, dim, LAYERS, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, I] -> [B, T, 2 D], forward half first."""
        out: Tensor = self.gru(x)[0]
        return out


class CausalConv(nn.Module):
    """A dilated convolution that sees no later frame, its weights normalised (arXiv 1602.07868).

    The weight is g v / ||v||, with a norm for each output channel.
    """

    def __init__(self, dim: int, dilation: int, kernel: int = 3) -> None:
        super().__init__()
        self.dilation = dilation
        self.weight_v = nn.Parameter(torch.empty(dim, dim, kernel).normal_(0, 0.01))
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(1, 2), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, T] -> [B, D, T]."""
        weight = self.weight_g * self.weight_v / self.weight_v.norm(dim=(1, 2), keepdim=True)
        padded = functional.pad(x, (self.dilation * (weight.shape[2] - 1), 0))
        return functional.conv1d(padded, weight, self.bias, dilation=self.dilation)


class CausalBlock(nn.Module):
    """Two causal convolutions with ReLU, their input added (TCN, arXiv 1803.01271)."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({name: CausalConv(dim, dilation) for name in ("0", "4")})
        self.register_load_state_dict_pre_hook(_leave_out_aliases)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, T] -> [B, D, T]."""
        y = x
        for conv in self.net.values():
            y = conv(y).relu()
        return (x + y).relu()


def _leave_out_aliases(
    _module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Published files hold each convolution twice: `net.0` is `conv1`, `net.4` is `conv2`."""
    for name in [name for name in state if name.startswith(f"{prefix}conv")]:
        del state[name]


class TCN(nn.Module):
    """One layer of the TCN: five causal blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(*(CausalBlock(dim, dilation) for dilation in TCN_DILATIONS))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        y: Tensor = self.network(x.transpose(1, 2))
        return y.transpose(1, 2)


class MambaLayer(nn.Sequential):
    """A norm and a Mamba-2 block; no checkpoint with it was published."""

    def __init__(self, dim: int) -> None:
        super().__init__(RMSNorm(dim), Mamba2(dim))


class ResidualStack(nn.Module):
    """Layers of one kind; the input of each is added to its output."""

    def __init__(self, layer: Callable[[int], nn.Module], dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(dim) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        for layer in self.layers:
            x = x + layer(x)
        return x


# Name -> what makes the layers for a model dimension: [B, T, D] -> [B, T, D].
STACKS: Final[Mapping[SequenceName, Callable[[int], nn.Module]]] = {
    "tf": lambda dim: NormedStack(TransformerLayer, dim, LAYERS),
    "attn": lambda dim: ResidualStack(GatedAttention, dim, LAYERS),
    "tcn": lambda dim: ResidualStack(TCN, dim, LAYERS),
    "hybrid": lambda dim: NormedStack(HybridLayer, dim, LAYERS),
    "mamba": lambda dim: ResidualStack(MambaLayer, dim, LAYERS),
}


def sequence_model(kind: SequenceName, in_features: int, dim: int) -> nn.Sequential:
    """A new sequence model: [B, T, I] -> [B, T, sequence_size(kind, dim)].

    All models but the GRU project their input to D values first.
    """
    if kind == "gru":
        return nn.Sequential(BiGRU(in_features, dim))
    return nn.Sequential(nn.Linear(in_features, dim), STACKS[kind](dim))


def sequence_size(kind: SequenceName, dim: int) -> int:
    """How many values a frame a sequence model gives."""
    return 2 * dim if kind == "gru" else dim
