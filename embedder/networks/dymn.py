"""DyMN: MN with dynamic inverted residual blocks, at any width (arXiv 2310.15648).

Axes: B batch, M mel bands, F frames, C channels, O output channels, H context size,
f frequency, t time.
Attribute names are the published file format: `in_c` the stem, `layers.0`-`14` the blocks
B1-B15, `out_c` the last 1x1 convolution, `classifier` the head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn

from embedder.networks.blocks import (
    ACTIVATIONS,
    BlockConfig,
    ConvNormActivation,
    InvertedResidual,
    batch_norm,
    round_channels,
    tracing,
)
from embedder.networks.context import Context, ContextGenerator, context_size
from embedder.networks.dynamic import (
    DynamicDepthwise,
    DynamicPointwise,
    DynamicReLU,
    Form,
    KernelAttention,
    StaticActivation,
    StaticConv,
)
from embedder.networks.heads import MLPHead
from embedder.networks.mn import (
    HIDDEN,
    LAST_FACTOR,
    ClassifiedStages,
    block_configs,
    initialise,
    stage_sizes,
)
from embedder.zoo import DyMNConfig, MNConfig

# On a CPU, clips go through a block one by one if the widest map of a clip has this many values
# or more.
ONE_BY_ONE: Final = 2**16
# Otherwise as many clips go together as have this many values in all: the caches hold them.
TOGETHER: Final = 2**20
# Up to this many positions, K products with fixed matrices cost less than mixing the matrices.
FEW_POSITIONS: Final = 16


@dataclass(frozen=True, slots=True)
class TemperatureSchedule:
    """The temperature of kernel attention in training: linear, then constant (section IV-A.3).

    With `start == end` the temperature is constant (Table VIII).
    """

    start: float = 30.0
    end: float = 1.0
    epochs: float = 30.0

    def at(self, epoch: float) -> float:
        """The temperature after `epoch` epochs, which may be a fraction."""
        progress = min(1.0, max(0.0, epoch / self.epochs))
        return self.start + (self.end - self.start) * progress


class Dynamics(NamedTuple):
    """All that the clips' contexts decide in one block; the first axis of each is the batch.

    `expand`, `depth` and `project` come from `DynamicConv.dynamics`, `activate` from
    `DynamicReLU.dynamics`.
    """

    expand: Tensor
    depth: Tensor
    activate: Tensor
    project: Tensor
    gate_f: Tensor  # B C f 1
    gate_t: Tensor  # B C 1 t


class Forms(NamedTuple):
    """How each of a block's convolutions applies its kernels."""

    expand: Form
    depth: Form
    project: Form


class DynamicBlock(nn.Module):
    """A dynamic inverted residual block: expand, depthwise, attend, project (Fig. 1)."""

    one_by_one: int = ONE_BY_ONE

    def __init__(self, block: BlockConfig, config: DyMNConfig) -> None:
        super().__init__()
        size = context_size(config, block.expanded)
        self.expanded = block.expanded
        self.stride = block.stride
        self.residual = block.stride == (1, 1) and block.in_channels == block.out_channels
        self.expands = block.expanded != block.in_channels
        self.attends = config.coordinate_attention
        if self.expands:
            self.exp_conv = _pointwise(config, size, (block.in_channels, block.expanded))
            self.exp_norm: nn.Module = batch_norm(block.expanded)
            self.exp_act = ACTIVATIONS[block.activation]()
        self.depth_conv = _depthwise(config, size, block)
        self.depth_norm: nn.Module = batch_norm(block.expanded)
        self.depth_act: DynamicReLU | StaticActivation = (
            DynamicReLU(block.expanded, size, config)
            if config.dynamic_relu
            else StaticActivation(ACTIVATIONS[block.activation]())
        )
        self.proj_conv = _pointwise(config, size, (block.expanded, block.out_channels))
        self.proj_norm: nn.Module = batch_norm(block.out_channels)
        self.context_gen = ContextGenerator(size, block)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, f, t] -> the block's output [B, O, f', t'], and the clips' contexts [B, H]."""
        x = x.contiguous(memory_format=torch.channels_last)
        context = self.context_gen(x)
        clips = self._clips_at_once(x)
        forms = self._forms(x, clips)
        dynamics = self.dynamics(context, forms)
        if clips is None or clips >= len(x):
            return self.transform(x, dynamics, forms), context.vector
        slices = zip(*(torch.split(part, clips) for part in (x, *dynamics)), strict=True)
        outputs = [self.transform(part, Dynamics(*rest), forms) for part, *rest in slices]
        return torch.cat(outputs), context.vector

    def dynamics(self, context: Context, forms: Forms) -> Dynamics:
        """What the clips' contexts decide, prepared for these forms."""
        vector, gate_f, gate_t = context
        return Dynamics(
            self.exp_conv.dynamics(vector, forms.expand) if self.expands else vector,
            self.depth_conv.dynamics(vector, forms.depth),
            self.depth_act.dynamics(vector),
            self.proj_conv.dynamics(vector, forms.project),
            gate_f,
            gate_t,
        )

    def fold_norms(self) -> None:
        """Merge every BatchNorm into the convolution before it, for evaluation."""
        for stage in ("exp", "depth", "proj") if self.expands else ("depth", "proj"):
            getattr(self, f"{stage}_conv").fold(getattr(self, f"{stage}_norm"))
            setattr(self, f"{stage}_norm", nn.Identity())

    def transform(self, x: Tensor, dynamics: Dynamics, forms: Forms) -> Tensor:
        """[B, C, f, t] -> the block's output [B, O, f', t'], given what the contexts decide."""
        y: Tensor = x
        if self.expands:
            y = self.exp_act(self.exp_norm(self.exp_conv(y, dynamics.expand, forms.expand)))
        y = self.depth_norm(self.depth_conv(y, dynamics.depth, forms.depth))
        y = self.depth_act(y, dynamics.activate)
        if self.attends:
            y = y * dynamics.gate_f * dynamics.gate_t
        y = self.proj_norm(self.proj_conv(y, dynamics.project, forms.project))
        return x + y if self.residual else y

    def _clips_at_once(self, x: Tensor) -> int | None:
        """How many clips run together; None for all of them, in forms that suit any number."""
        if tracing():
            return 1 if len(x) == 1 else None
        if self.training or x.device.type != "cpu":
            return None
        values = self.expanded * x.shape[2] * x.shape[3]
        return 1 if values >= self.one_by_one else TOGETHER // values

    def _forms(self, x: Tensor, clips: int | None) -> Forms:
        if clips == 1:
            return Forms(Form.CLIPS, Form.CLIPS, Form.CLIPS)
        positions = x.shape[2] * x.shape[3]
        after = positions // (self.stride[0] * self.stride[1])
        return Forms(_pointwise_form(positions), Form.MAPS, _pointwise_form(after))


def _pointwise_form(positions: int) -> Form:
    return Form.MAPS if positions <= FEW_POSITIONS else Form.KERNELS


def _pointwise(
    config: DyMNConfig, context: int, channels: tuple[int, int]
) -> DynamicPointwise | StaticConv:
    if config.dynamic_conv:
        return DynamicPointwise(config, context, channels)
    return StaticConv(nn.Conv2d(*channels, 1, bias=False))


def _depthwise(
    config: DyMNConfig, context: int, block: BlockConfig
) -> DynamicDepthwise | StaticConv:
    if config.dynamic_conv:
        return DynamicDepthwise(config, context, block)
    width, kernel = block.expanded, block.kernel
    return StaticConv(
        nn.Conv2d(width, width, kernel, block.stride, padding=kernel // 2, groups=width, bias=False)
    )


def dynamic_positions(config: DyMNConfig) -> tuple[bool, ...]:
    """For each of the fifteen blocks, whether it is dynamic (Table III)."""
    blocks = block_configs(MNConfig(config.width))
    third = len(blocks) // 3
    first = {"first": 0, "middle": third, "last": 2 * third}
    if config.placement in first:
        begin = first[config.placement]
        return tuple(begin <= number < begin + third for number in range(len(blocks)))
    return tuple(config.placement == "all" or block.se for block in blocks)


class DyMN(ClassifiedStages):
    """A dynamic MobileNet for log-mels; its static blocks, if any, have no SE.

    Its taps are MN's, but with "ctx1"..., the context vectors of the dynamic blocks, in place of
    "se4"...
    """

    VECTOR: ClassVar[str] = "ctx"

    def __init__(self, config: DyMNConfig) -> None:
        super().__init__()
        blocks = [replace(block, se=False) for block in block_configs(MNConfig(config.width))]
        positions = dynamic_positions(config)
        stem, last = blocks[0].in_channels, LAST_FACTOR * blocks[-1].out_channels
        hidden = round_channels(HIDDEN * config.width)
        self.in_c = ConvNormActivation(1, stem, 3, stride=2, activation="hardswish")
        self.layers = nn.ModuleList(
            DynamicBlock(block, config) if dynamic else InvertedResidual(block)
            for block, dynamic in zip(blocks, positions, strict=True)
        )
        self.out_c = ConvNormActivation(blocks[-1].out_channels, last, activation="hardswish")
        self.classifier = MLPHead(last, hidden, config.n_classes)
        contexts = {
            f"ctx{n}": context_size(config, block.expanded)
            for n, (block, dynamic) in enumerate(zip(blocks, positions, strict=True), 1)
            if dynamic
        }
        head = {"clf1": last, "clf2": hidden, "logits": config.n_classes}
        self.tap_sizes = stage_sizes(blocks) | contexts | head
        self.apply(initialise)

    def stages(self) -> Iterable[nn.Module]:
        return (self.in_c, *self.layers, self.out_c)

    @property
    def temperature(self) -> float | None:
        """The temperature of all kernel attentions; None without dynamic convolution."""
        return next((part.temperature for part in self._attentions()), None)

    @temperature.setter
    def temperature(self, value: float) -> None:
        for part in self._attentions():
            part.temperature = value

    def _attentions(self) -> Iterable[KernelAttention]:
        return (part for part in self.modules() if isinstance(part, KernelAttention))
