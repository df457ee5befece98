"""Training of sound event detectors, by the recipe of arXiv 2503.11373 (III-B, IV-C, IV-D).

The loss weighs strong labels with 0.1 and a teacher's pseudo-labels, given for every frame, with
0.9. Weakly labelled sound may fill half of every batch. Unlike in the paper, which teaches that
half by pseudo-labels alone, its labels also train the weak head, which makes the tags.
Axes: B batch, of which the first S are strongly labelled; M mel bands, F mel frames,
T frames of 40 ms, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from eval.data.labelled import Dataset
from eval.data.strong import PseudoLabels, StrongSet, clip_targets, shuffled
from eval.scores.frame_scores import FrameScores
from eval.scores.metrics import Metrics
from eval.training.augment import Mixup, fit
from eval.training.finetune import label_loss
from eval.training.trainer import Cosine


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """The recipe.

    The paper chose learning rates for each model: `peak`, for the sequence model and the heads,
    from 5e-4, 8e-4 and 3e-3, and `backbone_peak` from 1e-3, 3e-3 and 6e-3. `backbone_peak` is the
    rate of the last stage; each stage before it has `decay` times the rate of the next. At 0 the
    backbone is frozen, its BatchNorm statistics included. `label_weight` is the share of the
    labels in the loss where there are pseudo-labels; these have the rest.
    """

    epochs: int = 120
    peak: float = 8e-4
    backbone_peak: float = 1e-3
    decay: float = 0.9
    label_weight: float = 0.1
    batch: int = 256
    seconds: float = 10.0
    mixup: float = 0.3  # alpha of the Beta distribution, as in `Mixup.draw`
    seed: int = 0

    @property
    def frames(self) -> int:
        """T: frames of a training crop."""
        return round(self.seconds * 1000 / FRAME_MS)


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a detector learns from; if there are pseudo-labels, every clip has them."""

    strong: StrongSet
    weak: Dataset | None = None
    pseudo: PseudoLabels | None = None

    def strong_per_batch(self, batch: int) -> int:
        """S: the strongly labelled examples of a batch, half of it if there is a weak set."""
        return batch if self.weak is None else batch // 2

    def schedule(self, config: DetectorConfig) -> Cosine:
        """Return the learning rates of a run; its epochs are passes over the strong set."""
        per_epoch = len(self.strong.paths) / max(1, self.strong_per_batch(config.batch))
        return Cosine(max(1, round(config.epochs * per_epoch)), config.peak)


class DetectorBatch(NamedTuple):
    """Inputs and targets of one step, after mixup.

    Strongly labelled examples are mixed with one another only, and so are weakly labelled ones.
    """

    mel: Tensor  # B M F
    frames: Tensor  # S T C
    clips: Tensor  # B C, NaN for labels that were not judged
    taught: Tensor  # B T C, or empty without pseudo-labels


class DetectorExample(NamedTuple):
    """A crop of one clip, and its targets."""

    wave: NDArray[np.float32]  # samples at the detector's rate
    frames: NDArray[np.float32]  # T C, or empty where only the clip's labels are known
    clip: NDArray[np.float32]  # C
    taught: NDArray[np.float32]  # T C, or empty


class DetectorTraining:
    """An objective: a frame-wise MN learns the events of its labels."""

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

    def batch(self, step: int) -> DetectorBatch:
        """Make the log-mels and targets of one step."""
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
        return DetectorBatch(mel, parts[0]["frames"], clips, taught)

    def loss(self, batch: DetectorBatch, step: int) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        """Weigh the losses of labels (of frames and of clips) and of pseudo-labels.

        Without pseudo-labels, the loss is that of the labels.
        """
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
        """Return frame scores on whole held-out clips, computed as the service does."""
        if self.held_out is None:
            return {}
        scores = FrameScores(len(self.held_out.labels))
        for index in range(len(self._held_out_waves)):
            wave = self._held_out_waves[index]
            probabilities = self.embedder.frame_probabilities(wave).values[0].cpu().numpy()  # T C
            scores.add(probabilities, self.held_out.targets(index, 0, len(probabilities)))
        return scores.summary()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make Adam without weight decay, with the groups of `parameter_groups`."""
        assert isinstance(model, FrameMN)
        return torch.optim.Adam(parameter_groups(model, self.config), lr=0.0)

    def save(self, path: Path) -> None:
        """Write a checkpoint that `AudioEmbedder.load` reads, labels included."""
        checkpoints.save(path, self.embedder.spec, self.model.state_dict(), self.embedder.labels)

    def _logits(self, mel: Tensor) -> FrameLogits:
        assert isinstance(self.model, FrameMN)
        if self.config.backbone_peak == 0:
            self.model.model.eval()  # its BatchNorm statistics are frozen too
        return self.model.detect(mel)

    def _mixed(
        self, examples: list[DetectorExample], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Stack examples of one kind, turn waveforms into log-mels [B, M, F], and apply mixup."""
        mixup = Mixup.draw(len(examples), self.config.mixup, rng)
        wave, frames, clip, taught = (
            torch.from_numpy(np.stack(part)) for part in zip(*examples, strict=True)
        )
        parts = {"mel": self._frontend(wave), "frames": frames, "clip": clip, "taught": taught}
        return {name: mixup(part) for name, part in parts.items()}

    def _strong_example(self, index: int, rng: np.random.Generator) -> DetectorExample:
        wave, first = self._crop(self._waves[index], rng)
        frames = self.lessons.strong.targets(index, first, self.config.frames)
        taught = self._taught(self._waves.paths[index], first)
        return DetectorExample(wave, frames, frames.max(0), taught)

    def _weak_example(self, index: int, rng: np.random.Generator) -> DetectorExample:
        wave, first = self._crop(self._weak_waves[index], rng)
        taught = self._taught(self._weak_waves.paths[index], first)
        return DetectorExample(wave, np.empty(0, np.float32), self._weak_targets[index], taught)

    def _crop(
        self, wave: NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], int]:
        """Cut T frames at random: [S] -> (samples, number of the first frame); pad with silence."""
        frames, hop = self.config.frames, self.embedder.sample_rate * FRAME_MS // 1000
        spare = max(0, n_frames(len(wave), self.embedder.sample_rate) - frames)
        first = int(rng.integers(spare + 1))
        return fit(wave[first * hop : (first + frames) * hop], frames * hop), first

    def _taught(self, path: Path, first: int) -> NDArray[np.float32]:
        """Return the pseudo-labels [T, C] from frame `first` on; empty if there are none."""
        if self.lessons.pseudo is None:
            return np.empty(0, np.float32)
        return self.lessons.pseudo.targets(path, first, self.config.frames)


def parameter_groups(model: FrameMN, config: DetectorConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters for the optimiser.

    One group for each stage of the backbone, the last stage first, and one for all the rest.
    A group's "share" times the schedule's rate is its learning rate.
    """
    backbone: Any = model.model["fmn"]
    stages = backbone.features if config.backbone_peak else ()
    groups: list[dict[str, Any]] = [
        {
            "params": list(stage.parameters()),
            "share": config.backbone_peak / config.peak * config.decay**depth,
        }
        for depth, stage in enumerate(reversed(stages))
    ]
    in_backbone = {id(parameter) for parameter in model.model.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in in_backbone]
    return [*groups, {"params": rest, "share": 1.0}]
