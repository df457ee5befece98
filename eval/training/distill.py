"""Distillation of tags: a student learns a teacher's probabilities (arXiv 2310.15648, IV).

Offline, the teachers' logits are computed once and stored. Online, one teacher runs beside the
student and gets the same input, after mixup ("consistent" teaching). The bundled model was
trained in another way, on feature maps: see eval.training.features.
Axes: N clips, B batch, S samples, C classes, M mel bands, F frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embedder import checkpoints
from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from embedder.networks.dymn import DyMN, TemperatureSchedule
from embedder.zoo import DyMNConfig, NetworkConfig
from eval.data.labelled import Waves
from eval.scores.metrics import Metrics, mean_average_precision
from eval.training.augment import AugmentConfig, Mixup, fit, gain, jittered, roll
from eval.training.finetune import label_loss, predict

Logits = NDArray[np.float32]
DistillBatch = tuple[Tensor, Tensor, Tensor]  # what `TagDistillation.batch` returns
# Width of the published DyMNs (S, M and L) -> their peak learning rate (arXiv 2310.15648, IV-A.2).
DYMN_PEAKS: Final[Mapping[float, float]] = {0.4: 2e-3, 1.0: 1e-3, 2.0: 5e-4}
TOP: Final = 3  # so many of a teacher's most likely labels count as a clip's truth


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """The recipe; `label_weight` is the paper's lambda, the share of the labels in the loss."""

    label_weight: float = 0.1
    batch: int = 120
    seconds: float = 10.0
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True, slots=True)
class Material:
    """Clips to learn from, with their labels [N, C] or stored teacher logits [N, C], or both."""

    waves: Waves
    targets: Logits | None = None
    logits: Logits | None = None


class TagDistillation:
    """An objective: lambda BCE(labels) + (1 - lambda) BCE(teacher probabilities)."""

    def __init__(
        self,
        student: AudioEmbedder,
        material: Material,
        config: DistillConfig,
        teacher: AudioEmbedder | None = None,
        held_out: Material | None = None,
    ) -> None:
        if (teacher is None) == (material.logits is None):
            raise BadRequest("give either a teacher (online) or its stored logits (offline)")
        student.use("eager")  # other engines keep a copy of weights and temperature
        self.embedder, self.material, self.config = student, material, config
        self.teacher, self.held_out = teacher, held_out
        self.model: nn.Module = student.backbone
        self.model.requires_grad_(True)
        if material.targets is None:
            self._chances = np.full(len(material.waves), 1 / len(material.waves))
        else:
            self._chances = importance(material.targets)

    def batch(self, step: int) -> DistillBatch:
        """Make log-mels [B, M, F], labels [B, C] and teacher probabilities [B, C], after mixup.

        Labels or probabilities that the material does not have are empty tensors.
        """
        cfg, material = self.config, self.material
        rng = np.random.default_rng([cfg.seed, step])
        chosen = rng.choice(len(material.waves), cfg.batch, p=self._chances)
        rate = self.embedder.sample_rate
        waves = []
        for index in chosen:
            wave = fit(material.waves[int(index)], int(cfg.seconds * rate), rng)
            wave = roll(wave, int(cfg.augment.roll_ms * rate / 1000), rng)
            waves.append(gain(wave, cfg.augment.gain_db, rng))
        mel = jittered(self.embedder.spec.mel, cfg.augment, rng)(torch.from_numpy(np.stack(waves)))
        mixup = Mixup.draw(cfg.batch, cfg.augment.mel_mixup, rng)
        empty = torch.empty(0)
        labels = empty if material.targets is None else torch.from_numpy(material.targets[chosen])
        taught = empty if material.logits is None else torch.from_numpy(material.logits[chosen])
        return (
            mixup(mel),
            mixup(labels) if labels.numel() else empty,
            mixup(taught.sigmoid()) if taught.numel() else empty,
        )

    def loss(self, batch: DistillBatch, step: int) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        """Return the weighted sum of both losses; without labels, only the teacher's."""
        mel, labels, taught = batch
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher.backbone(mel).sigmoid()
        logits = self.model(mel)
        distilled = functional.binary_cross_entropy_with_logits(logits, taught)
        metrics = {"teacher_loss": float(distilled.detach())}
        if not labels.numel():
            return distilled, metrics
        weight = self.config.label_weight
        labelled = label_loss(logits, labels, multi_label=True)
        metrics["label_loss"] = float(labelled.detach())
        return weight * labelled + (1 - weight) * distilled, metrics

    def evaluate(self) -> Metrics:
        """Return mAP on the held-out clips, against their labels, or else against `top_labels`."""
        held_out = self.held_out
        if held_out is None:
            return {}
        truth = held_out.targets
        if truth is None:
            assert held_out.logits is not None
            truth = top_labels(held_out.logits)
        scores = predict(self.embedder, held_out.waves)
        return {"mean_average_precision": mean_average_precision(scores, truth)}


def peak_rate(network: NetworkConfig, otherwise: float) -> float:
    """Return the peak learning rate: the paper's for a DyMN, `otherwise` for other networks.

    A width between two published ones has the rate of the wider of them; a width above all has
    DyMN-L's.
    """
    if not isinstance(network, DyMNConfig):
        return otherwise
    published = [width for width in DYMN_PEAKS if width >= network.width]
    return DYMN_PEAKS[min(published, default=max(DYMN_PEAKS))]


def annealing(network: NetworkConfig) -> TemperatureSchedule | None:
    """Return the temperature schedule (30 to 1 over 30 epochs) if a network has a temperature.

    Only a DyMN with dynamic convolution has one.
    """
    if isinstance(network, DyMNConfig) and network.dynamic_conv:
        return TemperatureSchedule()
    return None


def importance(targets: Logits) -> NDArray[np.float64]:
    """Return each clip's chance [N] of being drawn: more for rare labels, as PaSST does it."""
    counts = np.nansum(targets, axis=0, dtype=np.float64)
    weights = np.nan_to_num(targets) @ (1000.0 / (counts + 100.0))
    weights = np.maximum(weights, weights[weights > 0].min(initial=1.0))
    return np.asarray(weights / weights.sum())


def ensemble_logits(teachers: Sequence[AudioEmbedder], paths: list[Path]) -> Logits:
    """Return the mean of the teachers' logits [N, C] for whole files."""
    rows = [predict(teacher, Waves(paths, teacher.sample_rate)) for teacher in teachers]
    return np.asarray(np.mean(rows, axis=0, dtype=np.float32))


def save_logits(path: Path, paths: Sequence[Path], logits: Logits) -> None:
    """Write logits [N, C] and the N paths that they belong to, as .npz."""
    np.savez_compressed(path, paths=np.array([str(p) for p in paths]), logits=logits)


def load_logits(path: Path) -> tuple[list[Path], Logits]:
    """Read what `save_logits` wrote."""
    with np.load(path) as arrays:
        return [Path(name) for name in arrays["paths"]], arrays["logits"]


def top_labels(logits: Logits, count: int = TOP) -> Logits:
    """Return 1 for the `count` highest logits of each clip, else 0: [N, C] -> [N, C]."""
    truth = np.zeros_like(logits)
    np.put_along_axis(truth, np.argsort(-logits, axis=1)[:, :count], 1.0, axis=1)
    return truth


def save_student(path: Path, student: AudioEmbedder) -> None:
    """Write the student as a self-describing safetensors file with 16-bit floats.

    A DyMN's file also holds the temperature that the student has now.
    """
    spec, network = student.spec, student.spec.network
    if isinstance(network, DyMNConfig) and network.dynamic_conv:
        assert isinstance(student.backbone, DyMN)
        temperature = student.backbone.temperature
        assert temperature is not None  # with dynamic convolution there is one
        spec = replace(spec, network=replace(network, temperature=temperature))
    checkpoints.save(path, spec, student.backbone.state_dict(), student.labels, half=True)
