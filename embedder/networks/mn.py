"""MN: MobileNetV3-Large at any width, on log-mels, with named features.

Axes: B batch, M mel bands, F frames, C channels, f frequency, t time.
Attribute names are the published file format: `features.0` is the stem, `features.1`-`15` the
blocks B1-B15, `features.16` the last 1x1 convolution, `classifier` the head.
`TappedStages` is what DyMN and the frame-wise MN share with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, Final, NamedTuple

from torch import Tensor, nn

from embedder.networks.backbone import Backbone
from embedder.networks.blocks import (
    Activation,
    BlockConfig,
    ConvNormActivation,
    InvertedResidual,
    round_channels,
)
from embedder.networks.heads import HEADS, MLPHead
from embedder.zoo import MNConfig


class Row(NamedTuple):
    """One block at width 1.0; `stride` is the position in MNConfig.strides, or None for 1."""

    kernel: int
    expanded: int
    out: int
    se: bool
    activation: Activation
    stride: int | None


# fmt: off
ROWS: Final = (
    #   kernel expand out  SE     activation   stride
    Row(3,     16,    16,  False, "relu",      None),
    Row(3,     64,    24,  False, "relu",      0),
    Row(3,     72,    24,  False, "relu",      None),
    Row(5,     72,    40,  True,  "relu",      1),
    Row(5,     120,   40,  True,  "relu",      None),
    Row(5,     120,   40,  True,  "relu",      None),
    Row(3,     240,   80,  False, "hardswish", 2),
    Row(3,     200,   80,  False, "hardswish", None),
    Row(3,     184,   80,  False, "hardswish", None),
    Row(3,     184,   80,  False, "hardswish", None),
    Row(3,     480,   112, True,  "hardswish", None),
    Row(3,     672,   112, True,  "hardswish", None),
    Row(5,     672,   160, True,  "hardswish", 3),
    Row(5,     960,   160, True,  "hardswish", None),
    Row(5,     960,   160, True,  "hardswish", None),
)
# fmt: on

STEM_CHANNELS: Final = 16
HIDDEN: Final = 1280
LAST_FACTOR: Final = 6  # the last 1x1 convolution widens so much
TAIL: Final = 3  # blocks that dilation and the reduced tail change


def block_configs(config: MNConfig) -> tuple[BlockConfig, ...]:
    """The fifteen blocks of one architecture, scaled and rounded."""
    blocks = []
    channels = round_channels(STEM_CHANNELS * config.width)
    for number, row in enumerate(ROWS):
        in_tail = number >= len(ROWS) - TAIL
        # The tail's first block is reduced at its output only.
        reduce_out = 2 if config.reduced_tail and in_tail else 1
        reduce_expanded = reduce_out if number > len(ROWS) - TAIL else 1
        stride = 1 if row.stride is None else config.strides[row.stride]
        block = BlockConfig(
            kernel=row.kernel,
            in_channels=channels,
            expanded=round_channels(row.expanded // reduce_expanded * config.width),
            out_channels=round_channels(row.out // reduce_out * config.width),
            se=row.se,
            activation=row.activation,
            stride=(stride, stride),
            dilation=config.dilation if in_tail else 1,
        )
        blocks.append(block)
        channels = block.out_channels
    return tuple(blocks)


class TappedStages(nn.Module):
    """Seventeen stages run one after the other: stem, fifteen blocks, last 1x1 convolution.

    Every stage's output has a name, "b0" to "b16", averaged over frequency and time; a block
    may also yield a vector of its own (what squeeze-and-excitation squeezed, a context).
    """

    # What a block's own vector is called, before its number.
    SIDE: ClassVar[str] = "se"

    def stages(self) -> Iterable[nn.Module]:
        """In the order in which they run."""
        raise NotImplementedError

    def enter(self, mel: Tensor) -> Tensor:
        """[B, M, F] -> what the first stage takes, [B, 1, M, F]."""
        return mel[:, None]

    def feature_maps(self, mel: Tensor) -> list[Tensor]:
        """[B, M, F] -> the outputs of the seventeen stages, each [B, C, f, t]."""
        maps = []
        x = self.enter(mel)
        for stage in self.stages():
            y = stage(x)
            x = y[0] if isinstance(y, tuple) else y
            maps.append(x)
        return maps

    def run(self, mel: Tensor, wanted: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The last map that was computed, and the features that the stages gave.

        [B, M, F] -> [B, C, f, t], and tap -> [B, size]. It stops after the stage that gives
        the last of `wanted`; a name that no stage gives makes it run to the end.
        """
        missing = set(wanted)
        found: dict[str, Tensor] = {}
        x = self.enter(mel)
        for number, stage in enumerate(self.stages()):
            mean, side = f"b{number}", f"{self.SIDE}{number}"
            if missing == {mean} and isinstance(stage, InvertedResidual) and not self.training:
                return x, found | {mean: stage.mean(x)}
            y = stage(x)
            x, vector = y if isinstance(y, tuple) else (y, None)
            if mean in missing:
                found[mean] = x.mean((2, 3))
            if side in missing and vector is not None:
                found[side] = vector
            missing -= found.keys()
            if not missing:
                break
        return x, found


def stage_sizes(blocks: Sequence[BlockConfig]) -> dict[str, int]:
    """Tap -> size of "b0" to "b16"."""
    sizes = {"b0": blocks[0].in_channels}
    sizes |= {f"b{n}": block.out_channels for n, block in enumerate(blocks, 1)}
    return sizes | {f"b{len(blocks) + 1}": LAST_FACTOR * blocks[-1].out_channels}


def se_sizes(blocks: Sequence[BlockConfig]) -> dict[str, int]:
    """Tap -> size of the bottlenecks of squeeze-and-excitation."""
    return {
        f"se{n}": round_channels(block.expanded // 4)
        for n, block in enumerate(blocks, 1)
        if block.se
    }


class ClassifiedStages(TappedStages, Backbone):
    """Stages and a head: clip-level logits, and the head's own features by name."""

    classifier: nn.Module
    tap_sizes: dict[str, int]

    def forward(self, mel: Tensor) -> Tensor:
        """Normalised log-mel [B, M, F] -> logits [B, n_classes]."""
        return self.features_by_name(mel, ["logits"])["logits"]

    def features_by_name(self, mel: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """The named features of a batch, computed no deeper than they need.

        Parameters
        ----------
        mel : Tensor, normalised log-mel [B, M, F].
        taps : any of `tap_sizes`: "b0"-"b16" block outputs averaged over frequency and time,
            "se4"... bottlenecks of squeeze-and-excitation before their ReLU (DyMN: "ctx1"...
            context vectors), "clf1" the pooled last map, "clf2" the hidden layer after its
            hardswish (what the published scores used: the activation works in place), "logits"
            (arXiv 2303.01879, section III).

        Returns
        -------
        dict, tap -> float32 [B, size].
        """
        wanted = set(taps)
        x, found = self.run(mel, wanted)
        if len(found) == len(wanted):
            return found
        if "clf1" in wanted:
            found["clf1"] = x.mean((2, 3))
        return found | self._head_features(x, wanted)

    def _head_features(self, last: Tensor, wanted: set[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if not isinstance(self.classifier, MLPHead):
            return {"logits": self.classifier(last)} if "logits" in wanted else found
        if wanted & {"clf2", "logits"}:
            hidden = self.classifier.hidden(last)
            if "clf2" in wanted:
                found["clf2"] = hidden
            if "logits" in wanted:
                found["logits"] = self.classifier.from_hidden(hidden)
        return found


class MN(ClassifiedStages):
    """A width-scaled MobileNetV3 for log-mels; see `features_by_name` for what it yields."""

    def __init__(self, config: MNConfig) -> None:
        super().__init__()
        blocks = block_configs(config)
        last = LAST_FACTOR * blocks[-1].out_channels
        self.features = feature_list(blocks)
        hidden = round_channels(HIDDEN // (2 if config.reduced_tail else 1) * config.width)
        self.classifier = HEADS[config.head](last, hidden, config.n_classes)
        self.tap_sizes = stage_sizes(blocks) | se_sizes(blocks) | {"clf1": last}
        if isinstance(self.classifier, MLPHead):
            self.tap_sizes |= {"clf2": hidden}
        self.tap_sizes |= {"logits": config.n_classes}
        self.apply(initialise)

    def stages(self) -> Iterable[nn.Module]:
        return self.features


def feature_list(blocks: Sequence[BlockConfig]) -> nn.ModuleList:
    """Stem, blocks and last 1x1 convolution, in the published order."""
    stem, last = blocks[0].in_channels, blocks[-1].out_channels
    return nn.ModuleList(
        [
            ConvNormActivation(1, stem, 3, stride=2, activation="hardswish"),
            *(InvertedResidual(block) for block in blocks),
            ConvNormActivation(last, LAST_FACTOR * last, activation="hardswish"),
        ]
    )


def initialise(module: nn.Module) -> None:
    """Random weights as torchvision's MobileNetV3 draws them."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)
