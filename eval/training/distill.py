"""Knowledge distillation of tags, offline or online (arXiv 2310.15648, section IV).

Offline, the teachers' logits are computed once and stored; online, one teacher runs beside the
student and sees the very same, mixed input ("consistent"). Feature distillation, which trained
the bundled model, is in eval.training.features.
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
from eval.scores.metrics import mean_average_precision
from eval.training.augment import AugmentConfig, Mixup, fit, gain, jittered, roll
from eval.training.finetune import label_loss, predict
from eval.training.trainer import Metrics

Logits = NDArray[np.float32]
Batch = tuple[Tensor, Tensor, Tensor]
# Peak learning rates of DyMN-S, M and L by width (arXiv 2310.15648, IV-A.2).
DYMN_PEAKS: Final[Mapping[float, float]] = {0.4: 2e-3, 1.0: 1e-3, 2.0: 5e-4}
TOP: Final = 3  # the teacher's most likely labels of a clip count as its truth


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """The recipe; `label_weight` is the paper's lambda."""

    label_weight: float = 0.1
    batch: int = 120
    seconds: float = 10.0
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True, slots=True)
class Material:
    """Clips, with whatever is known of them: labels [N, C] and stored teacher logits [N, C]."""

    waves: Waves
    targets: Logits | None = None
    logits: Logits | None = None


class TagDistillation:
    """A trainer's task: lambda BCE(labels) + (1 - lambda) BCE(teacher probabilities)."""

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
        student.use("eager")  # other engines would keep the weights and temperature they saw
        self.embedder, self.material, self.config = student, material, config
        self.teacher, self.held_out = teacher, held_out
        self.model: nn.Module = student.backbone
        self.model.requires_grad_(True)
        if material.targets is None:
            self._chances = np.full(len(material.waves), 1 / len(material.waves))
        else:
            self._chances = importance(material.targets)

    def batch(self, step: int) -> Batch:
        """Mixed log-mels [B, M, F], labels and teacher probabilities [B, C]; unknown ones empty."""
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
        none = torch.empty(0)
        labels = none if material.targets is None else torch.from_numpy(material.targets[chosen])
        taught = none if material.logits is None else torch.from_numpy(material.logits[chosen])
        return (
            mixup(mel),
            mixup(labels) if labels.numel() else none,
            mixup(taught.sigmoid()) if taught.numel() else none,
        )

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        """The weighted sum; without labels, the teacher's part alone."""
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
        """mAP on the held-out clips, against their labels or else the teacher's top ones."""
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
    """The paper's for a DyMN, `otherwise` for all other networks.

    A width in between has the rate of the next wider published one, any wider one DyMN-L's.
    """
    if not isinstance(network, DyMNConfig):
        return otherwise
    published = [width for width in DYMN_PEAKS if width >= network.width]
    return DYMN_PEAKS[min(published, default=max(DYMN_PEAKS))]


def annealing(network: NetworkConfig) -> TemperatureSchedule | None:
    """The temperature schedule of a DyMN with dynamic convolution, 30 -> 1 over 30 epochs."""
    if isinstance(network, DyMNConfig) and network.dynamic_conv:
        return TemperatureSchedule()
    return None


def importance(targets: Logits) -> NDArray[np.float64]:
    """Chance of each clip [N] to be drawn: clips with rare labels more often (as PaSST's)."""
    counts = np.nansum(targets, axis=0, dtype=np.float64)
    weights = np.nan_to_num(targets) @ (1000.0 / (counts + 100.0))
    weights = np.maximum(weights, weights[weights > 0].min(initial=1.0))
    return np.asarray(weights / weights.sum())


def ensemble_logits(teachers: Sequence[AudioEmbedder], paths: list[Path]) -> Logits:
    """Mean of the teachers' logits for whole clips, [N, C]."""
    rows = [predict(teacher, Waves(paths, teacher.sample_rate)) for teacher in teachers]
    return np.asarray(np.mean(rows, axis=0, dtype=np.float32))


def save_logits(path: Path, paths: Sequence[Path], logits: Logits) -> None:
    """Store them with the files they belong to."""
    np.savez_compressed(path, paths=np.array([str(p) for p in paths]), logits=logits)


def load_logits(path: Path) -> tuple[list[Path], Logits]:
    """What `save_logits` stored."""
    with np.load(path) as arrays:
        return [Path(name) for name in arrays["paths"]], arrays["logits"]


def top_labels(logits: Logits, count: int = TOP) -> Logits:
    """1 for the teacher's most likely labels of each clip, else 0: [N, C]."""
    truth = np.zeros_like(logits)
    np.put_along_axis(truth, np.argsort(-logits, axis=1)[:, :count], 1.0, axis=1)
    return truth


def save_student(path: Path, student: AudioEmbedder) -> None:
    """The student as fp16 safetensors that describes itself, a DyMN at its present temperature."""
    spec, network = student.spec, student.spec.network
    if isinstance(network, DyMNConfig) and network.dynamic_conv:
        assert isinstance(student.backbone, DyMN)
        temperature = student.backbone.temperature
        assert temperature is not None  # with dynamic convolution there is one
        spec = replace(spec, network=replace(network, temperature=temperature))
    checkpoints.save(path, spec, student.backbone.state_dict(), student.labels, half=True)
