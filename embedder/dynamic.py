"""Dynamic convolution, dynamic ReLU and coordinate attention (arXiv 2310.15648, section III).

Axes: B batch, C channels, O and I output and input channels, H context size, K kernels,
M lines of the dynamic ReLU, f frequency, t time.
Attribute names are the published file format and must not change.

A dynamic kernel differs from clip to clip, so a batch has no single convolution. Two exact
forms are used, and neither depends on what else is in the batch:

- one clip at a time: kernels are mixed for the whole batch at once, then every clip runs
  through ordinary convolutions, its maps staying in cache. The quickest on a CPU, for clips
  of a second and more;
- together: 1x1 convolutions are one batched matrix product, and depthwise ones run all K
  static kernels and mix the K outputs (a convolution is linear, Eq. 2). No tensor's shape or
  rank depends on the batch and no convolution has computed weights: for training, for GPUs,
  for many short windows, and for export to ONNX and OpenVINO.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.blocks import BlockConfig, Constants, batch_norm, round_channels
from embedder.zoo import DyMNConfig


def context_size(config: DyMNConfig, expanded: int) -> int:
    """H = C_exp / r, kept within bounds that scale with the width (section IV-A.3)."""
    low = round_channels(config.min_context * config.width)
    high = round_channels(config.max_context * config.width)
    return min(max(round_channels(expanded // config.reduction), low), high)


class Context(NamedTuple):
    """What one block reads off its input."""

    vector: Tensor  # B H
    gate_f: Tensor  # B C f 1, in (0, 1), after the block's stride
    gate_t: Tensor  # B C 1 t


class ContextGenerator(nn.Module):
    """Embeds a map's frequency and time profiles (Fig. 2), and makes attention of them (Eq. 7)."""

    def __init__(self, size: int, block: BlockConfig) -> None:
        super().__init__()
        self.joint_conv = nn.Conv2d(block.in_channels, size, 1, bias=False)
        self.joint_norm = batch_norm(size)
        self.conv_f = nn.Conv2d(size, block.expanded, 1)
        self.conv_t = nn.Conv2d(size, block.expanded, 1)
        self.stride = block.stride

    def forward(self, x: Tensor) -> Context:
        """[B, I, f, t] -> the context of each clip."""
        profile_f = x.mean(3, keepdim=True)  # B I f 1
        profile_t = x.mean(2, keepdim=True).transpose(2, 3)  # B I t 1
        joint = self.joint_norm(self.joint_conv(torch.cat([profile_f, profile_t], 2)))
        joint = functional.hardswish(joint)  # B H f+t 1
        bands = profile_f.shape[2]
        gate_f = self.conv_f(_halve(joint[:, :, :bands], self.stride[0])).sigmoid()
        gate_t = self.conv_t(_halve(joint[:, :, bands:], self.stride[1])).sigmoid()
        return Context(joint.mean((2, 3)), gate_f, gate_t.transpose(2, 3))


def _halve(sequence: Tensor, stride: int) -> Tensor:
    """[B, H, n, 1] -> [B, H, n / stride, 1]; padding zeros count in the mean."""
    if stride == 1:
        return sequence
    return functional.avg_pool2d(sequence, (3, 1), (stride, 1), (1, 0))


class KernelAttention(nn.Module):
    """Softmax over the K kernels with a temperature (Eq. 5)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        """[B, K] -> weights [B, K] that sum to 1."""
        return torch.softmax(logits / self.temperature, -1)


class DynamicConv(nn.Module):
    """A convolution without bias whose kernel is a mixture of K kernels (Eq. 2, 5, 6).

    Either 1x1 or depthwise: the only two that an inverted residual block has.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        context: int,
        config: DyMNConfig,
        *,
        kernel: int = 1,
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.depthwise = kernel > 1
        self.groups = in_channels if self.depthwise else 1
        self.shape = (out_channels, in_channels // self.groups, kernel, kernel)
        self.stride = stride
        self.padding = kernel // 2
        kernels = torch.empty(config.kernels, *self.shape)
        for one in kernels:
            nn.init.kaiming_normal_(one, mode="fan_out")
        self.weight = nn.Parameter(kernels.reshape(1, 1, config.kernels, -1))
        self.residuals = nn.ModuleList([nn.Linear(context, config.kernels)])
        self.attention = KernelAttention(config.temperature)

    def dynamics(self, vector: Tensor, *, one_by_one: bool) -> Tensor:
        """What a batch's contexts [B, H] make of this layer, for `forward`.

        Mixed kernels [B, O, I / groups, k, k], or just the attention [B, K] for a depthwise
        convolution that will run all of its kernels.
        """
        weights: Tensor = self.attention(self.residuals[0](vector))  # B K
        if self.depthwise and not one_by_one:
            return weights
        return (weights @ self.weight[0, 0]).view(-1, *self.shape)

    def forward(self, x: Tensor, dynamics: Tensor, *, one_by_one: bool) -> Tensor:
        """[B, I, f, t] -> [B, O, f', t']; B is 1 if `one_by_one`."""
        if one_by_one:
            return self._convolve(x, dynamics[0])
        if self.depthwise:
            return self._mixed_outputs(x, dynamics)
        kernels = dynamics.flatten(2).transpose(1, 2)  # B I O
        maps = x.permute(0, 2, 3, 1)  # B f t I, how channels-last maps lie in memory
        y = maps.flatten(1, 2) @ kernels  # B f*t O
        return y.view(*maps.shape[:3], -1).permute(0, 3, 1, 2)

    def _mixed_outputs(self, x: Tensor, attention: Tensor) -> Tensor:
        kernels = self.weight.view(-1, *self.shape)  # K O 1 k k
        shares = attention.T[:, :, None, None, None]  # K B 1 1 1
        y = self._convolve(x, kernels[0]) * shares[0]
        for kernel, share in zip(kernels[1:], shares[1:], strict=True):
            y = torch.addcmul(y, self._convolve(x, kernel), share)
        return y

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        return functional.conv2d(
            x, kernel, stride=self.stride, padding=self.padding, groups=self.groups
        )


class StaticConv(nn.Module):
    """An ordinary convolution in a dynamic one's place (Table II, "- Dy-Conv")."""

    def __init__(self, module: nn.Conv2d) -> None:
        super().__init__()
        self.module = module

    def dynamics(self, vector: Tensor, *, one_by_one: bool) -> Tensor:  # noqa: ARG002
        """Nothing, for each clip."""
        return vector[:, :0]

    def forward(self, x: Tensor, dynamics: Tensor, *, one_by_one: bool) -> Tensor:  # noqa: ARG002
        out: Tensor = self.module(x)
        return out


class DynamicReLU(Constants):
    """Dy-ReLU-B: the greatest of M lines per channel, spatially shared (Eq. 3, 4)."""

    lambdas: Tensor
    init_v: Tensor

    def __init__(self, channels: int, context: int, config: DyMNConfig) -> None:
        super().__init__()
        self.lines = config.mappings
        self.coef_net = nn.Sequential(nn.Linear(context, 2 * self.lines * channels))
        # Slopes move by up to 1 around (1, 0, ...), intercepts by up to 0.5 around 0.
        self.register_constant("lambdas", torch.tensor([1.0] * self.lines + [0.5] * self.lines))
        self.register_constant("init_v", torch.tensor([1.0] + [0.0] * (2 * self.lines - 1)))

    def dynamics(self, vector: Tensor) -> Tensor:
        """[B, H] -> slopes and intercepts [B, C, 2 M], slopes first."""
        theta = 2 * torch.sigmoid(self.coef_net(vector)) - 1
        coefficients: Tensor = theta.view(len(vector), -1, 2 * self.lines)
        return coefficients * self.lambdas + self.init_v

    def forward(self, x: Tensor, dynamics: Tensor) -> Tensor:
        """[B, C, f, t] -> the same shape."""
        slopes, intercepts = dynamics[..., None, None].chunk(2, 2)  # B C M 1 1, each
        y = torch.addcmul(intercepts[:, :, 0], x, slopes[:, :, 0])
        for line in range(1, self.lines):
            other = torch.addcmul(intercepts[:, :, line], x, slopes[:, :, line])
            y = torch.maximum(y, other)
        return y


class StaticActivation(nn.Module):
    """An ordinary activation in the dynamic one's place (Table II, "- Dy-ReLU")."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.module = activation

    def dynamics(self, vector: Tensor) -> Tensor:
        """Nothing, for each clip."""
        return vector[:, :0]

    def forward(self, x: Tensor, dynamics: Tensor) -> Tensor:  # noqa: ARG002
        out: Tensor = self.module(x)
        return out
