"""Training of sound event detection, by the recipe of arXiv 2503.11373 (III-B, IV-C, IV-D).

Strong labels and frame-wise pseudo-labels teach together, 0.1 to 0.9; weakly labelled sound may
fill half of every batch. There, the paper has pseudo-labels alone; here, labels also train the
weak head, which makes the tags.
Axes: B batch, of which the first S are strongly labelled; M mel bands, F mel frames,
T frames of 40 ms, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embedder import checkpoints
from embedder.defaults import FRAME_MS
from embedder.errors import BadRequest
from embedder.events.frames import n_frames
from embedder.frontend import LogMel
from embedder.model import AudioEmbedder
from embedder.networks.frame_mn import FrameLogits, FrameMN
from embedder.zoo import FrameMNConfig, MNConfig
from embedder.zoo import Sequence as SequenceModel
from eval.data.labelled import Dataset
from eval.data.strong import PseudoLabels, StrongSet, clip_targets, shuffled
from eval.scores.frame_scores import FrameScores
from eval.training.augment import Mixup, fit
from eval.training.finetune import label_loss
from eval.training.trainer import Cosine, Metrics

MEL_FRAMES: Final = 4  # that make one frame of the detector
DIM: Final = 256  # of the sequence model at width 1 (section IV-B)


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """The recipe. The paper chose rates per model: `peak`, of the sequence model and the heads,
    from 5e-4, 8e-4 and 3e-3, and `backbone_peak` from 1e-3, 3e-3 and 6e-3.

    `backbone_peak` is the last stage's; each stage before has `decay` times the next one's. At 0
    the backbone is frozen, statistics included. `label_weight` counts where there are
    pseudo-labels, which have the rest.
    """

    epochs: int = 120
    peak: float = 8e-4
    backbone_peak: float = 1e-3
    decay: float = 0.9
    label_weight: float = 0.1
    batch: int = 256
    seconds: float = 10.0
    mixup: float = 0.3  # alpha of the Beta distribution
    seed: int = 0

    @property
    def frames(self) -> int:
        """T of a training crop."""
        return round(self.seconds * 1000 / FRAME_MS)


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a detector learns from; pseudo-labels, if there are any, for every clip."""

    strong: StrongSet
    weak: Dataset | None = None
    pseudo: PseudoLabels | None = None

    def strong_per_batch(self, batch: int) -> int:
        """S: half of a batch is weak where there is a weak set."""
        return batch if self.weak is None else batch // 2

    def schedule(self, config: DetectorConfig) -> Cosine:
        """Epochs are those of the strong set."""
        per_epoch = len(self.strong.paths) / max(1, self.strong_per_batch(config.batch))
        return Cosine(max(1, round(config.epochs * per_epoch)), config.peak)


class Batch(NamedTuple):
    """Mixed inputs and targets; the weak half mixes with itself, and so does the strong."""

    mel: Tensor  # B M F
    frames: Tensor  # S T C
    clips: Tensor  # B C, NaN where nobody knows
    taught: Tensor  # B T C, or empty without pseudo-labels


class Example(NamedTuple):
    """One clip's share of a batch."""

    wave: NDArray[np.float32]  # samples
    frames: NDArray[np.float32]  # T C, or empty where only the clip's labels are known
    clip: NDArray[np.float32]  # C
    taught: NDArray[np.float32]  # T C, or empty


class DetectorTraining:
    """A trainer's task: a frame-wise MN learns the events of its labels."""

    def __init__(
        self,
        detector: AudioEmbedder,
        lessons: Lessons,
        config: DetectorConfig,
        held_out: StrongSet | None = None,
    ) -> None:
        if lessons.strong.labels != detector.labels:
            raise BadRequest("the strong labels are not the detector's; make it with `detector_of`")
        if lessons.strong_per_batch(config.batch) < 1:
            raise BadRequest(f"a batch of {config.batch} has no halves; choose at least 2")
        self.embedder, self.lessons, self.config = detector, lessons, config
        self.held_out = held_out
        self.model: nn.Module = detector.backbone
        self.model.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.backbone_peak == 0:
            self.model.model.requires_grad_(False)
        rate = detector.sample_rate
        self._frontend = LogMel(detector.spec.mel)  # on the CPU, where batches are made
        self._waves = lessons.strong.waves(rate)
        if lessons.weak is not None:
            self._weak_waves = lessons.weak.waves(rate)
            self._weak_targets = clip_targets(lessons.weak, detector.labels)
        if held_out is not None:
            self._held_out_waves = held_out.waves(rate)

    def batch(self, step: int) -> Batch:
        """Log-mels and targets of one step."""
        cfg, lessons = self.config, self.lessons
        rng = np.random.default_rng([cfg.seed, 2, step])
        strong = lessons.strong_per_batch(cfg.batch)
        chosen = shuffled(len(self._waves), strong, step, [cfg.seed, 0])
        parts = [self._mixed([self._strong_example(index, rng) for index in chosen], rng)]
        if lessons.weak is not None:
            chosen = shuffled(len(self._weak_waves), cfg.batch - strong, step, [cfg.seed, 1])
            parts.append(self._mixed([self._weak_example(index, rng) for index in chosen], rng))
        mel, clips, taught = (
            torch.cat([part[field] for part in parts]) for field in ("mel", "clip", "taught")
        )
        return Batch(mel, parts[0]["frames"], clips, taught)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        """Label weight (frames + clips) + the rest (pseudo-labels); without these, labels alone."""
        mel, frames, clips, taught = batch
        logits = self._logits(mel)
        strong = functional.binary_cross_entropy_with_logits(logits.strong[: len(frames)], frames)
        weak = label_loss(logits.weak, clips, multi_label=True)
        metrics = {"frame_loss": float(strong.detach()), "clip_loss": float(weak.detach())}
        if not taught.numel():
            return strong + weak, metrics
        distilled = functional.binary_cross_entropy_with_logits(logits.strong, taught)
        metrics["teacher_loss"] = float(distilled.detach())
        weight = self.config.label_weight
        return weight * (strong + weak) + (1 - weight) * distilled, metrics

    def evaluate(self) -> Metrics:
        """Frame scores on the held-out clips, as the service would find them."""
        if self.held_out is None:
            return {}
        scores = FrameScores(len(self.held_out.labels))
        for index in range(len(self._held_out_waves)):
            found = self.embedder.frame_probabilities(self._held_out_waves[index]).values[0]
            scores.add(found.cpu().numpy(), self.held_out.targets(index, 0, len(found)))
        return scores.summary()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam without weight decay, a group a stage of the backbone and one for all the rest."""
        assert isinstance(model, FrameMN)
        return torch.optim.Adam(parameter_groups(model, self.config), lr=0.0)

    def save(self, path: Path) -> None:
        """A checkpoint that `AudioEmbedder.load` takes, labels included."""
        checkpoints.save(path, self.embedder.spec, self.model.state_dict(), self.embedder.labels)

    def _logits(self, mel: Tensor) -> FrameLogits:
        assert isinstance(self.model, FrameMN)
        if self.config.backbone_peak == 0:
            self.model.model.eval()  # its statistics rest too
        return self.model.detect(mel)

    def _mixed(self, examples: list[Example], rng: np.random.Generator) -> dict[str, Tensor]:
        """Examples of one kind as a mixed batch, waveforms as log-mels."""
        mixup = Mixup.draw(len(examples), self.config.mixup, rng)
        wave, frames, clip, taught = (
            torch.from_numpy(np.stack(part)) for part in zip(*examples, strict=True)
        )
        parts = {"mel": self._frontend(wave), "frames": frames, "clip": clip, "taught": taught}
        return {name: mixup(part) for name, part in parts.items()}

    def _strong_example(self, index: int, rng: np.random.Generator) -> Example:
        wave, first = self._crop(self._waves[index], rng)
        frames = self.lessons.strong.targets(index, first, self.config.frames)
        taught = self._taught(self._waves.paths[index], first)
        return Example(wave, frames, frames.max(0), taught)

    def _weak_example(self, index: int, rng: np.random.Generator) -> Example:
        wave, first = self._crop(self._weak_waves[index], rng)
        taught = self._taught(self._weak_waves.paths[index], first)
        return Example(wave, np.empty(0, np.float32), self._weak_targets[index], taught)

    def _crop(
        self, wave: NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], int]:
        """As much sound as T frames cover, silence after the end, and the first frame's number."""
        frames, hop = self.config.frames, self.embedder.sample_rate * FRAME_MS // 1000
        spare = max(0, n_frames(len(wave), self.embedder.sample_rate) - frames)
        first = int(rng.integers(spare + 1))
        return fit(wave[first * hop : (first + frames) * hop], frames * hop), first

    def _taught(self, path: Path, first: int) -> NDArray[np.float32]:
        if self.lessons.pseudo is None:
            return np.empty(0, np.float32)
        return self.lessons.pseudo.targets(path, first, self.config.frames)


def parameter_groups(model: FrameMN, config: DetectorConfig) -> list[dict[str, Any]]:
    """Trainable parameters, each group with its "share" of `peak`; the last stage comes first."""
    backbone: Any = model.model["fmn"]
    stages = backbone.features if config.backbone_peak else ()
    groups: list[dict[str, Any]] = [
        {
            "params": list(stage.parameters()),
            "share": config.backbone_peak / config.peak * config.decay**depth,
        }
        for depth, stage in enumerate(reversed(stages))
    ]
    inside = {id(parameter) for parameter in model.model.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return [*groups, {"params": rest, "share": 1.0}]


def detector_of(
    base: AudioEmbedder,
    labels: Sequence[str],
    sequence: SequenceModel | None = None,
    dim: int | None = None,
    seed: int = 0,
) -> AudioEmbedder:
    """A frame-wise MN for these labels on the convolutions and the front end of `base`.

    An MN gives its backbone, as ImageNet's do in the paper. A frame-wise MN also gives its
    sequence model, if `sequence` is None or its own kind, and its heads if the labels are the
    same. All else is random. `dim` is the sequence model's dimension; default: `sequence_dim`.
    """
    spec = replace(base.spec, weights="", url="", sha256=None, mean_ap=None, psds1=None)
    spec = replace(spec, network=_frame_network(base, sequence, dim, len(labels)))
    torch.manual_seed(seed)
    model = AudioEmbedder(base.name, spec, base.taps, labels)
    old, state = _frame_names(base), model.backbone.state_dict()
    heads = ("strong_head.", "weak_head.")
    kept = {
        name: tensor
        for name, tensor in old.items()
        if name in state
        and tensor.shape == state[name].shape
        and (base.labels == tuple(labels) or not name.startswith(heads))
    }
    if lost := [n for n in state if n.startswith("model.") and n not in kept]:
        raise BadRequest(f"the backbone of {base.name} does not fit a frame-wise MN: {lost[0]}")
    model.backbone.load_state_dict(state | kept)
    return model.to(base.device)


def _frame_network(
    base: AudioEmbedder, sequence: SequenceModel | None, dim: int | None, classes: int
) -> FrameMNConfig:
    network, mel = base.spec.network, base.spec.mel
    if not isinstance(network, MNConfig | FrameMNConfig):
        raise BadRequest(f"{base.name} is no MN; a detector starts from an MN or a frame-wise one")
    if MEL_FRAMES * mel.hop * 1000 != FRAME_MS * mel.sample_rate:
        raise BadRequest(f"{base.name} does not hop by {FRAME_MS // MEL_FRAMES} ms; choose another")
    if isinstance(network, FrameMNConfig) and sequence in (None, network.sequence):
        return replace(network, dim=dim or network.dim, n_classes=classes)
    return FrameMNConfig(network.width, sequence, dim or sequence_dim(network.width), classes)


def sequence_dim(width: float) -> int:
    """The sequence model's dimension beside a backbone of this width, a multiple of 8."""
    return -(-round(DIM * width) // 8) * 8


def _frame_names(base: AudioEmbedder) -> dict[str, Tensor]:
    """A backbone's weights under the names that a frame-wise MN has for them."""
    state: dict[str, Tensor] = base.backbone.state_dict()
    if isinstance(base.spec.network, FrameMNConfig):
        return state
    return {f"model.fmn.{name}": tensor for name, tensor in state.items()}
