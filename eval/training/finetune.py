"""Fine-tuning on a labelled set, by the recipe of arXiv 2310.15648, section V-B.

Axes: N clips, B batch, S samples, M mel bands, F frames, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embedder import checkpoints
from embedder.model import AudioEmbedder
from eval.data.labelled import Dataset, Waves
from eval.scores.metrics import Metrics, accuracy, mean_average_precision
from eval.training.augment import AugmentConfig, Mixup, fit, gain, jittered, mix_waves, roll
from eval.training.trainer import Schedule

FinetuneBatch = tuple[Tensor, Tensor]  # what `Finetune.batch` returns
EPOCHS: Final = 80  # 10 of them warm-up, 65 ramp-down, 5 at 1 % of the peak


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """The recipe. `seconds` is the length of training crops; shorter clips are padded."""

    epochs: int = EPOCHS
    peak: float = 1e-3
    batch: int = 32
    seconds: float = 10.0
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def steps(self, examples: int) -> int:
        """Return the number of training steps of a run."""
        return self.epochs * self.per_epoch(examples)

    def per_epoch(self, examples: int) -> int:
        """Return the number of training steps of an epoch."""
        return max(1, round(examples / self.batch))

    def schedule(self, examples: int) -> Schedule:
        """Return learning rates: warm-up, ramp-down and fine phase of 10, 65 and 5 in 80 epochs."""
        return Schedule(self.steps(examples), self.peak, 10 / 80, 0.0, 65 / 80)


class Finetune:
    """An objective: the whole network learns a labelled set."""

    def __init__(
        self, base: AudioEmbedder, train: Dataset, test: Dataset, config: FinetuneConfig
    ) -> None:
        self.config, self.train, self.test = config, train, test
        self.embedder = with_labels(base, train.labels, config.seed)
        self.model: nn.Module = self.embedder.backbone
        # This memory format is a third faster on a CPU.
        self.model.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rate = self.embedder.sample_rate
        self._waves = train.waves(rate)
        self._test_waves = test.waves(rate)
        self._targets, self._test_targets = train.targets(), test.targets()

    def batch(self, step: int) -> FinetuneBatch:
        """Make log-mels [B, M, F] and targets [B, C], after mixup."""
        cfg, aug = self.config, self.config.augment
        rng = np.random.default_rng([cfg.seed, 1, step])
        samples = int(cfg.seconds * self.embedder.sample_rate)
        waves, targets = [], []
        for index in self._indices(step):
            wave, target = self._example(index, samples, rng), self._targets[index]
            if rng.random() < aug.wave_mixup:
                other = int(rng.integers(len(self._waves)))
                wave, share = mix_waves(wave, self._example(other, samples, rng), rng)
                target = share * target + (1 - share) * self._targets[other]
            waves.append(wave)
            targets.append(target)
        mel = jittered(self.embedder.spec.mel, aug, rng)(torch.from_numpy(np.stack(waves)))
        mixup = Mixup.draw(len(waves), aug.mel_mixup, rng)
        return mixup(mel), mixup(torch.from_numpy(np.stack(targets)))

    def loss(self, batch: FinetuneBatch, step: int) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        """Return the cross-entropy: of the one label, or the mean over independent labels."""
        mel, targets = batch
        logits = self.model(mel)
        return label_loss(logits, targets, self.train.multi_label), {}

    def evaluate(self) -> Metrics:
        """Return accuracy or mean average precision on whole, unchanged clips of the test folds."""
        scores = predict(self.embedder, self._test_waves)
        return score(scores, self._test_targets, self.test.multi_label)

    def save(self, path: Path) -> None:
        """Write a checkpoint that `AudioEmbedder.load` reads, labels included."""
        spec, labels = self.embedder.spec, self.embedder.labels
        checkpoints.save(path, spec, self.model.state_dict(), labels)

    def _indices(self, step: int) -> list[int]:
        """Return the indices of a step's examples; every epoch shuffles all of them anew.

        An epoch has a rounded number of batches: its last batch repeats the first examples of the
        shuffle, or a few examples are left out.
        """
        count, size = len(self._waves), self.config.batch
        per_epoch = self.config.per_epoch(count)
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([self.config.seed, 0, epoch]).permutation(count)
        positions = np.arange(position * size, (position + 1) * size) % count
        return [int(order[i]) for i in positions[: max(count, 1)]]

    def _example(self, index: int, samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Cut or pad a clip to [samples], and change it at random."""
        aug, rate = self.config.augment, self.embedder.sample_rate
        wave = fit(self._waves[index], samples, rng)
        wave = roll(wave, int(aug.roll_ms * rate / 1000), rng)
        return gain(wave, aug.gain_db, rng)


def with_labels(base: AudioEmbedder, labels: Sequence[str], seed: int = 0) -> AudioEmbedder:
    """Return a copy of a model, with a new, random classifier for these labels."""
    network = replace(base.spec.network, n_classes=len(labels))
    spec = replace(base.spec, network=network, weights="", url="", sha256=None, mean_ap=None)
    torch.manual_seed(seed)
    model = AudioEmbedder(base.name, spec, base.taps, labels)
    kept: dict[str, Any] = base.backbone.state_dict()
    state = model.backbone.state_dict()
    state |= {k: v for k, v in kept.items() if k in state and v.shape == state[k].shape}
    model.backbone.load_state_dict(state)
    return model.to(base.device)


def label_loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Return the cross-entropy of logits [B, C] and targets [B, C] as a scalar.

    Targets lie in [0, 1] and need not be 0 or 1. With `multi_label`, a NaN leaves this label of
    this example out of the mean.
    """
    if not multi_label:
        return functional.cross_entropy(logits, targets)
    known = ~targets.isnan()
    return functional.binary_cross_entropy_with_logits(logits[known], targets[known])


@torch.inference_mode()
def predict(embedder: AudioEmbedder, waves: Waves) -> NDArray[np.float32]:
    """Return the logits of whole clips, each computed alone, as the service does: [N, C]."""
    rows = [
        embedder.features(waves[index], taps=["logits"])["logits"][0].cpu()
        for index in range(len(waves))
    ]
    return np.asarray(torch.stack(rows).numpy())


def score(scores: NDArray[np.float32], targets: NDArray[np.float32], multi_label: bool) -> Metrics:
    """Score logits [N, C] by mean average precision if `multi_label`, else by accuracy."""
    if multi_label:
        return {"mean_average_precision": mean_average_precision(scores, targets)}
    return {"accuracy": accuracy(scores, targets)}
