"""Frame-wise MN: an MN that keeps time, a sequence model, frame and clip heads (arXiv 2503.11373).

Axes: B batch, M mel bands, F mel frames (10 ms), T output frames (40 ms), D values a frame,
N classes.
Attribute names are the published file format: `model.fmn.features`, `seq_model`,
`strong_head`, `weak_head`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from torch import Tensor, nn

from embedder.networks.backbone import Backbone
from embedder.networks.blocks import BlockConfig
from embedder.networks.mn import (
    LAST_FACTOR,
    TappedStages,
    block_configs,
    feature_list,
    initialise,
    se_sizes,
    stage_sizes,
)
from embedder.networks.sequence import sequence_model, sequence_size
from embedder.zoo import FrameMNConfig, MNConfig

# Strides of the fifteen blocks: frequency shrinks 64-fold with the stem, time only four-fold.
FREQUENCY_STRIDES: Final = (1, 2, 2, 1, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 2)
TIME_STRIDES: Final = (1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
STRONG: Final = "strong"  # the logits of frames, by name

# Names in published files -> names here; the first that fits a name's beginning is replaced.
LEGACY_PREFIXES: Final = {
    "net.model.": "model.fmn.",
    "net.": "model.",
    "model.model.": "model.fmn.",
}


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under the names of this module."""
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    for old, new in LEGACY_PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def frame_block_configs(width: float) -> tuple[BlockConfig, ...]:
    """MN's blocks with a stride for each axis."""
    strides = zip(FREQUENCY_STRIDES, TIME_STRIDES, strict=True)
    blocks = zip(block_configs(MNConfig(width)), strides, strict=True)
    return tuple(replace(block, stride=stride) for block, stride in blocks)


class FrameFeatures(TappedStages):
    """The convolutional backbone: mel [B, M, F] -> [B, D, f, T], f = 1 for 128 bands."""

    def __init__(self, blocks: tuple[BlockConfig, ...]) -> None:
        super().__init__()
        self.features = feature_list(blocks)

    def stages(self) -> Iterable[nn.Module]:
        return self.features


class FrameLogits(NamedTuple):
    """Class logits of every frame and of the clip."""

    strong: Tensor  # B T N
    weak: Tensor  # B N


class FrameMN(Backbone):
    """A frame-wise MN with its sequence model and heads."""

    def __init__(self, config: FrameMNConfig) -> None:
        super().__init__()
        blocks = frame_block_configs(config.width)
        frame = LAST_FACTOR * blocks[-1].out_channels
        size = frame if config.sequence is None else sequence_size(config.sequence, config.dim)
        backbone = FrameFeatures(blocks)
        backbone.apply(initialise)
        self.model = nn.ModuleDict({"fmn": backbone})
        self.seq_model = (
            nn.Sequential()
            if config.sequence is None
            else sequence_model(config.sequence, frame, config.dim)
        )
        self.strong_head = nn.Linear(size, config.n_classes)
        self.weak_head = nn.Linear(size, config.n_classes)
        self.tap_sizes = stage_sizes(blocks) | se_sizes(blocks)
        self.tap_sizes |= {"frames": frame, "seq": size, "logits": config.n_classes}

    def forward(self, mel: Tensor) -> Tensor:
        """Normalised log-mel [B, M, F] -> the clip's logits [B, N]."""
        return self.detect(mel).weak

    def detect(self, mel: Tensor) -> FrameLogits:
        """[B, M, F] -> logits of every frame [B, T, N], and of the clip [B, N]."""
        sequence = self.sequence(self.frames(mel))
        return FrameLogits(self.strong_head(sequence), self.weak_head(sequence.mean(1)))

    def frames(self, mel: Tensor) -> Tensor:
        """[B, M, F] -> the backbone's frames [B, T, D], T = ceil(F / 4)."""
        return self._as_frames(self._backbone.run(mel, ("frames",))[0])

    def sequence(self, frames: Tensor) -> Tensor:
        """Backbone frames [B, T, D] -> what the heads take [B, T, tap_sizes["seq"]]."""
        out: Tensor = self.seq_model(frames)
        return out

    def feature_maps(self, mel: Tensor) -> list[Tensor]:
        """[B, M, F] -> the outputs of the backbone's seventeen stages, each [B, C, f, t]."""
        return self._backbone.feature_maps(mel)

    def features_by_name(self, mel: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """The named features of a batch, computed no deeper than they need.

        Parameters
        ----------
        mel : Tensor, normalised log-mel [B, M, F].
        taps : any of `tap_sizes`: "b0"-"b16" and "se4"... as in MN; "frames" and "seq" the
            backbone's and the sequence model's frames, averaged over time; "logits" the
            clip's. Beside them "strong", the frames' own logits.

        Returns
        -------
        dict, tap -> float32 [B, size]; "strong" -> [B, T, N].
        """
        wanted = set(taps)
        x, found = self._backbone.run(mel, wanted)
        if len(found) == len(wanted):
            return found
        frames = self._as_frames(x)
        if "frames" in wanted:
            found["frames"] = frames.mean(1)
        if wanted & {"seq", "logits", STRONG}:
            sequence = self.sequence(frames)
            found |= {"seq": sequence.mean(1), STRONG: self.strong_head(sequence)}
            found["logits"] = self.weak_head(found["seq"])
        return {tap: found[tap] for tap in wanted}

    @property
    def _backbone(self) -> FrameFeatures:
        backbone = self.model["fmn"]
        assert isinstance(backbone, FrameFeatures)
        return backbone

    def _as_frames(self, maps: Tensor) -> Tensor:
        """[B, D, f, T] -> [B, T, D], in the precision of the sequence model."""
        return maps.mean(2).transpose(1, 2).to(self.strong_head.weight.dtype)
