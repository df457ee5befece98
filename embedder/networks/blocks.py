"""The convolutional blocks that the backbones are built from.

Axes: B batch, C channels, O output channels, f frequency, t time.
Attribute names are the published file format and must not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "hardswish"]

ACTIVATIONS: Final[dict[Activation, Callable[[], nn.Module]]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "hardswish": partial(nn.Hardswish, inplace=True),
}

# Every BatchNorm of the published models has this eps and momentum.
batch_norm: Final = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


def round_channels(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and never below 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """One inverted residual block; its channel counts are scaled and rounded already."""

    kernel: int
    in_channels: int
    expanded: int
    out_channels: int
    se: bool
    activation: Activation
    stride: tuple[int, int]  # frequency, time
    dilation: int = 1


def tracing() -> bool:
    """Whether torch is recording a graph, which must then hold for inputs of any size."""
    recorded: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return recorded or torch.compiler.is_compiling()


class Constants(nn.Module):
    """A module with buffers that follow from the architecture; they are not saved or loaded.

    Some published files contain such buffers. Strict loading skips them there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_leave_out_constants)  # type: ignore[no-untyped-call]

    def register_constant(self, name: str, value: Tensor) -> None:
        """Register a buffer that is no weight and stays out of the state dict."""
        self.register_buffer(name, value, persistent=False)


def _leave_out_constants(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    for name, _buffer in module.named_buffers(recurse=False):
        state.pop(prefix + name, None)


class ConvNormActivation(nn.Sequential):
    """A convolution without bias, its BatchNorm and, unless it is None, an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        stride: int | tuple[int, int] = 1,
        groups: int = 1,
        dilation: int = 1,
        activation: Activation | None = None,
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride,
                padding=(kernel - 1) // 2 * dilation,
                dilation=dilation,
                groups=groups,
                bias=False,
            ),
            batch_norm(out_channels),
            *([ACTIVATIONS[activation]()] if activation else []),
        )


class _ChannelExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        bottleneck = round_channels(channels // 4)
        self.fc1 = nn.Linear(channels, bottleneck)
        self.fc2 = nn.Linear(bottleneck, channels)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        bottleneck: Tensor = self.fc1(pooled)
        gate: Tensor = self.fc2(bottleneck.relu()).sigmoid()
        return bottleneck, gate


class SqueezeExcitation(nn.Module):
    """Channel attention (arXiv 1709.01507) with a sigmoid gate; MobileNetV3 has a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conc_se_layers = nn.ModuleList([_ChannelExcitation(channels)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, f, t] -> the gated map [B, C, f, t], and the bottleneck before its ReLU.

        The bottleneck is [B, round_channels(C / 4)].
        """
        (excitation,) = self.conc_se_layers
        bottleneck, gate = excitation(x.mean((2, 3)))
        return x * gate[:, :, None, None], bottleneck


class InvertedResidual(nn.Module):
    """Expand, depthwise, excite, project (MobileNetV3, arXiv 1905.02244)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        c = config
        stride = (1, 1) if c.dilation > 1 else c.stride
        self.residual = stride == (1, 1) and c.in_channels == c.out_channels
        layers: list[nn.Module] = []
        if c.expanded != c.in_channels:
            layers.append(ConvNormActivation(c.in_channels, c.expanded, activation=c.activation))
        layers.append(
            ConvNormActivation(
                c.expanded,
                c.expanded,
                c.kernel,
                stride=stride,
                groups=c.expanded,
                dilation=c.dilation,
                activation=c.activation,
            )
        )
        self.n_spatial = len(layers)  # layers before the excitation and the projection
        if c.se:
            layers.append(SqueezeExcitation(c.expanded))
        layers.append(ConvNormActivation(c.expanded, c.out_channels))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, C, f, t] -> the block's output [B, O, f', t'], and its SE bottleneck or None."""
        y, bottleneck = self._project(self._widen(x))
        return (x + y if self.residual else y), bottleneck

    def mean(self, x: Tensor) -> Tensor:
        """[B, C, f, t] -> the output's mean over f and t [B, O], without computing the output.

        Outside training, excitation and projection are linear for each clip, so the mean may be
        taken before them.
        """
        y, _ = self._project(self._widen(x).mean((2, 3), keepdim=True))
        y = y[:, :, 0, 0]
        return x.mean((2, 3)) + y if self.residual else y

    def _widen(self, x: Tensor) -> Tensor:
        for layer in list(self.block)[: self.n_spatial]:
            x = layer(x)
        return x

    def _project(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        bottleneck = None
        for layer in list(self.block)[self.n_spatial :]:
            if isinstance(layer, SqueezeExcitation):
                y, bottleneck = layer(y)
            else:
                y = layer(y)
        return y, bottleneck
