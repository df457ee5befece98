"""Dynamic convolution and dynamic ReLU (arXiv 2310.15648, section III-D and III-E).

Axes: B batch, C channels, O and I output and input channels, H context size, K kernels,
M lines of the dynamic ReLU, f frequency, t time.
Attribute names are the published file format and must not change.

Every clip has a kernel of its own, so that no single convolution serves a batch. `Form` lists
three ways to apply the kernels. All are exact, and in none does a clip's result depend on the
rest of the batch:

- CLIPS: each clip goes through an ordinary convolution with its own mixed kernel. This is the
  fastest on a CPU for long clips.
- KERNELS, for 1x1 convolutions only: one batched matrix product of the clips and their kernels.
- MAPS: the whole batch goes through each of the K kernels, and the K outputs are mixed (Eq. 2: a
  convolution is linear).

In KERNELS and MAPS no convolution has computed weights, and no rank or shape depends on the
batch. They serve training, GPUs, many short windows, and export to ONNX and OpenVINO.
"""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedder.networks.blocks import BlockConfig, Constants
from embedder.networks.context import ClipWise, affine, per_clip
from embedder.zoo import DyMNConfig


class KernelAttention(nn.Module):
    """A softmax over the K kernels, with a temperature (Eq. 5)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        """[B, K] -> weights [B, K] that sum to 1."""
        return torch.softmax(logits / self.temperature, -1)


class Form(Enum):
    """How the clips of a batch, each with its own kernel, are convolved; see the module's text."""

    CLIPS = "each clip by its kernel, one after the other"
    KERNELS = "each clip by its kernel, in one product"
    MAPS = "all clips by every kernel, and then the mixtures of the maps"


class DynamicConv(nn.Module):
    """K kernels, mixed for each clip by attention to its context (Eq. 2, 5, 6).

    Call `dynamics` for a whole batch, then `forward` for the batch or for parts of it.
    """

    shift: Tensor | None  # [O], added by a BatchNorm that was merged into the kernels

    def __init__(
        self,
        config: DyMNConfig,
        context: int,
        shape: tuple[int, int, int, int],
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.shape = shape  # of one kernel: O I/groups k k
        self.stride = stride
        self.groups = shape[0] if shape[1] == 1 else 1
        # With this scale, an even mixture has the variance of a Kaiming initialisation (fan out).
        fan_out = shape[0] // self.groups * shape[2] * shape[3]
        kernels = torch.randn(config.kernels, *shape) * math.sqrt(2 * config.kernels / fan_out)
        self.weight = nn.Parameter(kernels.view(1, 1, config.kernels, -1))
        self.register_buffer("shift", None, persistent=False)
        self.residuals = nn.ModuleList([ClipWise(context, config.kernels)])
        self.attention = KernelAttention(config.temperature)

    @property
    def kernels(self) -> Tensor:
        """All kernels, [K, O, I/groups, k, k]."""
        return self.weight.view(-1, *self.shape)

    def fold(self, norm: nn.BatchNorm2d) -> None:
        """Merge the BatchNorm that follows into the kernels, for evaluation."""
        scale, shift = affine(norm)
        self.register_buffer("shift", shift, persistent=False)
        self.weight.data = (self.kernels * scale[:, None, None, None]).view_as(self.weight)

    def attend(self, vector: Tensor) -> Tensor:
        """[B, H] -> each kernel's share [B, K]."""
        (linear,) = self.residuals
        shares: Tensor = self.attention(linear(vector))
        return shares

    def dynamics(self, vector: Tensor, form: Form) -> Tensor:
        """[B, H] -> kernels [B, O, I/groups, k, k], or for Form.MAPS shares [B, K]."""
        shares = self.attend(vector)
        if form is Form.MAPS:
            return shares
        return per_clip(shares[:, None], self.weight[0, 0]).view(-1, *self.shape)

    def forward(self, x: Tensor, dynamics: Tensor, form: Form) -> Tensor:
        """[B, I, f, t] and the clips' part of `dynamics` -> [B, O, f', t']."""
        if form is Form.MAPS:
            return self._mixed_maps(x, dynamics)
        if len(x) == 1:
            return self._convolve(x, dynamics[0], self.shift)
        clips = zip(torch.split(x, 1), dynamics, strict=True)
        return torch.cat([self._convolve(clip, kernel, self.shift) for clip, kernel in clips])

    def _mixed_maps(self, x: Tensor, shares: Tensor) -> Tensor:
        by_kernel = shares.T[:, :, None, None, None]  # K B 1 1 1
        # Every convolution adds `shift`; the shares sum to 1, so the mixture has it once.
        y = self._convolve(x, self.kernels[0], self.shift) * by_kernel[0]
        for kernel, share in zip(self.kernels[1:], by_kernel[1:], strict=True):
            y = torch.addcmul(y, self._convolve(x, kernel, self.shift), share)
        return y

    def _convolve(self, x: Tensor, kernel: Tensor, shift: Tensor | None) -> Tensor:
        padding = self.shape[-1] // 2
        return functional.conv2d(x, kernel, shift, self.stride, padding, groups=self.groups)


class DynamicPointwise(DynamicConv):
    """A dynamic 1x1 convolution."""

    def __init__(self, config: DyMNConfig, context: int, channels: tuple[int, int]) -> None:
        in_channels, out_channels = channels
        super().__init__(config, context, (out_channels, in_channels, 1, 1))

    def forward(self, x: Tensor, dynamics: Tensor, form: Form) -> Tensor:
        """[B, I, f, t] -> [B, O, f, t]."""
        if form is Form.KERNELS:
            return self._product(x, dynamics)
        return super().forward(x, dynamics, form)

    def _product(self, x: Tensor, kernels: Tensor) -> Tensor:
        maps = x.permute(0, 2, 3, 1)  # the memory order of channels-last maps, so no copy
        batch, bands, frames, channels = maps.shape
        rows = maps.reshape(batch, bands * frames, channels)
        matrices = kernels.flatten(2).transpose(1, 2)  # B I O
        y = rows @ matrices if self.shift is None else torch.baddbmm(self.shift, rows, matrices)
        return y.view(batch, bands, frames, self.shape[0]).permute(0, 3, 1, 2)


class DynamicDepthwise(DynamicConv):
    """A dynamic depthwise convolution."""

    def __init__(self, config: DyMNConfig, context: int, block: BlockConfig) -> None:
        shape = (block.expanded, 1, block.kernel, block.kernel)
        super().__init__(config, context, shape, block.stride)


class StaticConv(nn.Module):
    """An ordinary convolution with a dynamic one's methods (Table II, "- Dy-Conv")."""

    def __init__(self, module: nn.Conv2d) -> None:
        super().__init__()
        self.module = module

    def fold(self, norm: nn.BatchNorm2d) -> None:
        """Merge the BatchNorm that follows into the convolution, for evaluation."""
        self.module = fuse_conv_bn_eval(self.module, norm)

    def dynamics(self, vector: Tensor, form: Form) -> Tensor:  # noqa: ARG002
        """An empty tensor [B, 0]: no context decides anything here."""
        return vector[:, :0]

    def forward(self, x: Tensor, dynamics: Tensor, form: Form) -> Tensor:  # noqa: ARG002
        """[B, I, f, t] -> [B, O, f', t']."""
        y: Tensor = self.module(x)
        return y


class DynamicReLU(Constants):
    """Dy-ReLU-B: the greatest of M lines per channel, the same at all positions (Eq. 3, 4)."""

    lambdas: Tensor
    init_v: Tensor

    def __init__(self, channels: int, context: int, config: DyMNConfig) -> None:
        super().__init__()
        self.channels = channels
        self.lines = config.mappings
        self.coef_net = nn.Sequential(ClipWise(context, 2 * self.lines * channels))
        # Slopes lie within 1 of (1, 0, ...), intercepts within 0.5 of 0.
        self.register_constant("lambdas", torch.tensor([1.0] * self.lines + [0.5] * self.lines))
        self.register_constant("init_v", torch.tensor([1.0] + [0.0] * (2 * self.lines - 1)))

    def dynamics(self, vector: Tensor) -> Tensor:
        """[B, H] -> slopes and intercepts [B, 2 M, C], slopes first."""
        theta: Tensor = torch.tanh(self.coef_net(vector) / 2)  # 2 sigmoid(x) - 1, exact near 0
        lines = theta.view(-1, self.channels, 2 * self.lines) * self.lambdas + self.init_v
        # In this memory order, elementwise work on channels-last maps is vectorised.
        return lines.transpose(1, 2).contiguous()

    def forward(self, x: Tensor, dynamics: Tensor) -> Tensor:
        """[B, C, f, t] and the clips' part of `dynamics` -> [B, C, f, t]."""
        slopes, intercepts = dynamics[..., None, None].chunk(2, 1)  # B M C 1 1, each
        y = torch.addcmul(intercepts[:, 0], x, slopes[:, 0])
        for line in range(1, self.lines):
            y = torch.maximum(y, torch.addcmul(intercepts[:, line], x, slopes[:, line]))
        return y


class StaticActivation(nn.Module):
    """An ordinary activation with the dynamic one's methods (Table II, "- Dy-ReLU")."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.module = activation

    def dynamics(self, vector: Tensor) -> Tensor:
        """An empty tensor [B, 0]: no context decides anything here."""
        return vector[:, :0]

    def forward(self, x: Tensor, dynamics: Tensor) -> Tensor:  # noqa: ARG002
        """[B, C, f, t] -> [B, C, f, t]."""
        out: Tensor = self.module(x)
        return out
