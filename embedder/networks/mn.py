"""MN: MobileNetV3-Large at any width, on log-mels, with named features.

Axes: B batch, M mel bands, F frames, C channels, f frequency, t time.
Attribute names are the published file format: `features.0` is the stem, `features.1`-`15` the
blocks B1-B15, `features.16` the last 1x1 convolution, `classifier` the head.
DyMN and the frame-wise MN share `TappedStages` with it.
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


class BlockRow(NamedTuple):
    """One block at width 1.0; `stride` is an index into MNConfig.strides, or None for stride 1."""

    kernel: int
    expanded: int
    out: int
    se: bool
    activation: Activation
    stride: int | None


# fmt: off
ROWS: Final = (
    #        kernel expand out  SE     activation   stride
    BlockRow(3,     16,    16,  False, "relu",      None),
    BlockRow(3,     64,    24,  False, "relu",      0),
    BlockRow(3,     72,    24,  False, "relu",      None),
    BlockRow(5,     72,    40,  True,  "relu",      1),
    BlockRow(5,     120,   40,  True,  "relu",      None),
    BlockRow(5,     120,   40,  True,  "relu",      None),
    BlockRow(3,     240,   80,  False, "hardswish", 2),
    BlockRow(3,     200,   80,  False, "hardswish", None),
    BlockRow(3,     184,   80,  False, "hardswish", None),
    BlockRow(3,     184,   80,  False, "hardswish", None),
    BlockRow(3,     480,   112, True,  "hardswish", None),
    BlockRow(3,     672,   112, True,  "hardswish", None),
    BlockRow(5,     672,   160, True,  "hardswish", 3),
    BlockRow(5,     960,   160, True,  "hardswish", None),
    BlockRow(5,     960,   160, True,  "hardswish", None),
)
# fmt: on

STEM_CHANNELS: Final = 16
HIDDEN: Final = 1280
LAST_FACTOR: Final = 6  # by which the last 1x1 convolution multiplies the channels
TAIL: Final = 3  # number of last blocks, which dilation and the reduced tail change


def block_configs(config: MNConfig) -> tuple[BlockConfig, ...]:
    """The fifteen blocks of one architecture, their channel counts scaled and rounded."""
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

    The features "b0" to "b16" are the stages' outputs, averaged over frequency and time. A block
    may also give a vector: the bottleneck of squeeze-and-excitation, or a context.
    """

    # The name of a block's vector is this and the block's number, from 1.
    VECTOR: ClassVar[str] = "se"

    def stages(self) -> Iterable[nn.Module]:
        """The stages, in the order in which they run."""
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

    def run(self, mel: Tensor, taps: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the stages as far as the taps need; return the last map and the features.

        [B, M, F] -> the last map that was computed [B, C, f, t], and {tap: [B, size]}. A tap that
        no stage gives is left out, and makes all stages run.
        """
        missing = set(taps)
        features: dict[str, Tensor] = {}
        x = self.enter(mel)
        for number, stage in enumerate(self.stages()):
            mean, vector = f"b{number}", f"{self.VECTOR}{number}"
            if missing == {mean} and isinstance(stage, InvertedResidual) and not self.training:
                return x, features | {mean: stage.mean(x)}
            output = stage(x)
            x, values = output if isinstance(output, tuple) else (output, None)
            if mean in missing:
                features[mean] = x.mean((2, 3))
            if vector in missing and values is not None:
                features[vector] = values
            missing -= features.keys()
            if not missing:
                break
        return x, features


def stage_sizes(blocks: Sequence[BlockConfig]) -> dict[str, int]:
    """The sizes of the taps "b0" to "b16"."""
    sizes = {"b0": blocks[0].in_channels}
    sizes |= {f"b{n}": block.out_channels for n, block in enumerate(blocks, 1)}
    return sizes | {f"b{len(blocks) + 1}": LAST_FACTOR * blocks[-1].out_channels}


def se_sizes(blocks: Sequence[BlockConfig]) -> dict[str, int]:
    """The sizes of the taps "se4"..., the bottlenecks of squeeze-and-excitation."""
    return {
        f"se{n}": round_channels(block.expanded // 4)
        for n, block in enumerate(blocks, 1)
        if block.se
    }


class ClassifiedStages(TappedStages, Backbone):
    """Stages and a head, which gives the clip's logits and features of its own."""

    classifier: nn.Module
    tap_sizes: dict[str, int]

    def forward(self, mel: Tensor) -> Tensor:
        """Normalised log-mel [B, M, F] -> logits [B, n_classes]."""
        return self.features_by_name(mel, ["logits"])["logits"]

    def features_by_name(self, mel: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """The named features of a batch; stages that no tap needs are not run.

        Parameters
        ----------
        mel : Tensor, normalised log-mel [B, M, F].
        taps : any of `tap_sizes` (arXiv 2303.01879, section III):
            "b0"-"b16", the stages' outputs, averaged over frequency and time;
            "se4"..., the bottlenecks of squeeze-and-excitation before their ReLU (DyMN has
            "ctx1"... instead, the context vectors);
            "clf1", the last map, averaged over frequency and time;
            "clf2", the hidden layer after its hardswish, which works in place: these are the
            values that the published scores used;
            "logits", the clip's logits.

        Returns
        -------
        dict, tap -> float32 [B, size].
        """
        names = set(taps)
        last, features = self.run(mel, names)
        if len(features) == len(names):
            return features
        if "clf1" in names:
            features["clf1"] = last.mean((2, 3))
        return features | self._head_features(last, names)

    def _head_features(self, last: Tensor, names: set[str]) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        if not isinstance(self.classifier, MLPHead):
            return {"logits": self.classifier(last)} if "logits" in names else features
        if names & {"clf2", "logits"}:
            hidden = self.classifier.hidden(last)
            if "clf2" in names:
                features["clf2"] = hidden
            if "logits" in names:
                features["logits"] = self.classifier.from_hidden(hidden)
        return features


class MN(ClassifiedStages):
    """A MobileNetV3-Large for log-mels, at any width; `features_by_name` lists its taps."""

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
    """Draw a module's random weights as torchvision's MobileNetV3 does."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)
