"""Contexts: what a dynamic block computes from its input (arXiv 2310.15648, III-C and III-F).

Axes: B batch, C expanded channels, I input and O output values, H context size, f frequency,
t time, n positions of a sequence.
Attribute names are the published file format and must not change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.networks.blocks import BlockConfig, batch_norm, round_channels, tracing
from embedder.zoo import DyMNConfig


def context_size(config: DyMNConfig, expanded: int) -> int:
    """H = C_exp / r, kept within bounds that grow with the width (section IV-A.3)."""
    low = round_channels(config.min_context * config.width)
    high = round_channels(config.max_context * config.width)
    return min(max(round_channels(expanded // config.reduction), low), high)


def per_clip(x: Tensor, weight: Tensor) -> Tensor:
    """The products x W, computed for each clip by itself: [B, n, I], [I, O] -> [B, n, O].

    One product of all rows would round differently for different numbers of rows, and the
    layers that use a context enlarge such differences. Where gradients flow and in recorded
    graphs it is one product all the same.
    """
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if learning or tracing():
        return x @ weight
    return torch.bmm(x, weight.expand(len(x), -1, -1))


class Affine(NamedTuple):
    """A BatchNorm outside training: scale x + shift, by channel."""

    scale: Tensor  # C
    shift: Tensor  # C


def affine(norm: nn.BatchNorm2d) -> Affine:
    """A BatchNorm's running statistics and weights as two vectors."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return Affine(scale, norm.bias - norm.running_mean * scale)


class PositionWise(nn.Conv2d):
    """A linear layer at every position of a sequence, stored as a 1x1 convolution."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, 1, bias=bias)

    def forward(self, sequence: Tensor) -> Tensor:
        """[B, n, I] -> [B, n, O]."""
        y = per_clip(sequence, self.weight.flatten(1).T)
        return y if self.bias is None else y + self.bias


class ClipWise(nn.Linear):
    """A linear layer on one vector a clip."""

    def forward(self, vector: Tensor) -> Tensor:
        """[B, I] -> [B, O]."""
        return per_clip(vector[:, None], self.weight.T)[:, 0] + self.bias


class Context(NamedTuple):
    """What one block computes from its input, for each clip."""

    vector: Tensor  # B H
    gate_f: Tensor  # B C f 1, in (0, 1), after the block's stride
    gate_t: Tensor  # B C 1 t, the same for time


class ContextGenerator(nn.Module):
    """Embeds a map's frequency and time profiles (Fig. 2) and turns them into gates (Eq. 7)."""

    def __init__(self, size: int, block: BlockConfig) -> None:
        super().__init__()
        self.joint_conv = PositionWise(block.in_channels, size, bias=False)
        self.joint_norm: nn.Module = batch_norm(size)
        self.conv_f = PositionWise(size, block.expanded)
        self.conv_t = PositionWise(size, block.expanded)
        self.stride = block.stride

    def forward(self, x: Tensor) -> Context:
        """[B, I, f, t] -> the context of each clip."""
        profiles = torch.cat([x.mean(3), x.mean(2)], 2).transpose(1, 2)  # B f+t I
        joint = functional.hardswish(self._normalise(self.joint_conv(profiles)))  # B f+t H
        bands = x.shape[2]
        gate_f = self.conv_f(_halve(joint[:, :bands], self.stride[0])).sigmoid()  # B f C
        gate_t = self.conv_t(_halve(joint[:, bands:], self.stride[1])).sigmoid()  # B t C
        return Context(
            joint.mean(1), gate_f.transpose(1, 2)[..., None], gate_t.transpose(1, 2)[:, :, None]
        )

    def fold_norms(self) -> None:
        """Merge the BatchNorm into the layer before it, for evaluation."""
        assert isinstance(self.joint_norm, nn.BatchNorm2d)
        scale, shift = affine(self.joint_norm)
        self.joint_conv.weight.data = self.joint_conv.weight * scale[:, None, None, None]
        self.joint_conv.bias = nn.Parameter(shift)
        self.joint_norm = nn.Identity()

    def _normalise(self, sequence: Tensor) -> Tensor:
        if isinstance(self.joint_norm, nn.Identity):
            return sequence
        maps: Tensor = self.joint_norm(sequence.transpose(1, 2)[..., None])
        return maps[..., 0].transpose(1, 2)


def _halve(sequence: Tensor, stride: int) -> Tensor:
    """[B, n, H] -> [B, ceil(n / stride), H]: means of three; zeros beyond the ends count."""
    if stride == 1:
        return sequence
    return functional.avg_pool1d(sequence.transpose(1, 2), 3, stride, 1).transpose(1, 2)
