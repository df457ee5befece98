"""Frame-wise MN: an MN that keeps time, a sequence model, frame and clip heads (arXiv 2503.11373).

Axes: B batch, M mel bands, F mel frames (10 ms), T output frames (40 ms), D values a frame,
N classes, C channels, f frequency, t time.
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

# Strides of the fifteen blocks. With the stem's, frequency shrinks 128-fold, time only four-fold.
FREQUENCY_STRIDES: Final = (1, 2, 2, 1, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 2)
TIME_STRIDES: Final = (1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
STRONG: Final = "strong"  # the name of the frames' logits among the features

# How names begin in published files -> how they begin here; the first that matches is replaced.
LEGACY_PREFIXES: Final = {
    "net.model.": "model.fmn.",
    "net.": "model.",
    "model.model.": "model.fmn.",
}


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict with its tensors renamed as here; other names stay."""
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
    """The convolutional stages: mel [B, M, F] -> last map [B, D, f, T]; f is 1 for 128 bands."""

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
        stages = FrameFeatures(blocks)
        stages.apply(initialise)
        self.model = nn.ModuleDict({"fmn": stages})
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
        """[B, M, F] -> the frames of the convolutional stages [B, T, D], T = ceil(F / 4)."""
        return self._as_frames(self._stages.run(mel, ("frames",))[0])

    def sequence(self, frames: Tensor) -> Tensor:
        """Frames [B, T, D] -> the sequence model's frames [B, T, tap_sizes["seq"]]."""
        out: Tensor = self.seq_model(frames)
        return out

    def feature_maps(self, mel: Tensor) -> list[Tensor]:
        """[B, M, F] -> the outputs of the seventeen stages, each [B, C, f, t]."""
        return self._stages.feature_maps(mel)

    def features_by_name(self, mel: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """The named features of a batch; stages that no tap needs are not run.

        Parameters
        ----------
        mel : Tensor, normalised log-mel [B, M, F].
        taps : any of `tap_sizes`, and "strong":
            "b0"-"b16" and "se4"..., as in MN;
            "frames" and "seq", the frames of the convolutional stages and of the sequence
            model, averaged over time;
            "logits", the clip's logits;
            "strong", the logits of every frame.

        Returns
        -------
        dict, tap -> float32 [B, size]; "strong" -> [B, T, N].
        """
        names = set(taps)
        last, features = self._stages.run(mel, names)
        if len(features) == len(names):
            return features
        frames = self._as_frames(last)
        if "frames" in names:
            features["frames"] = frames.mean(1)
        if names & {"seq", "logits", STRONG}:
            sequence = self.sequence(frames)
            features |= {"seq": sequence.mean(1), STRONG: self.strong_head(sequence)}
            features["logits"] = self.weak_head(features["seq"])
        return {name: features[name] for name in names}

    @property
    def _stages(self) -> FrameFeatures:
        stages = self.model["fmn"]
        assert isinstance(stages, FrameFeatures)
        return stages

    def _as_frames(self, maps: Tensor) -> Tensor:
        """[B, D, f, T] -> their mean over f [B, T, D], in the precision of the sequence model."""
        return maps.mean(2).transpose(1, 2).to(self.strong_head.weight.dtype)
