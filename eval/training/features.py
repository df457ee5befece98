"""Feature distillation: a student learns its teacher's feature maps, block by block.

Student and teacher have the same architecture, so each block of the student can be fed with the
teacher's input to that block ("stitched"). It then learns a shallow, local regression and need not
wait until the blocks before it are good. Over the run, blocks are fed more and more often with
what the student itself computed, and at last always: from then on it learns end to end.

A "map" is the output of one block. A "pooled" value is the mean of a map over frequency and time.
Axes: B batch, C channels, f frequency, t time, M mel bands, F frames.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedder.model import AudioEmbedder
from embedder.networks.backbone import Backbone
from embedder.networks.blocks import ConvNormActivation, InvertedResidual
from eval.data.mixing import Mixer
from eval.scores.metrics import Metrics

# This share of the mean variance is added to each channel's variance: a channel that hardly
# changes would otherwise dominate the normalised loss.
EPSILON: Final = 0.02


@dataclass(frozen=True, slots=True)
class FeatureConfig:
    """Weights of the loss, and when the student is fed with its own maps.

    `stitched_until`, `own_from` and `freeze_norm` are shares of the run's steps.
    """

    steps: int
    stitched_until: float = 0.15  # before that, only the teacher's maps are inputs
    own_from: float = 0.45  # after that, only the student's own maps are
    pooled: float = 1.0  # weight of the pooled values' error, where that of the maps is 1
    tags: float = 10.0  # weight of the cross-entropy on the teacher's probabilities
    logits: float = 1.0  # weight of the normalised squared error of the logits
    first: int = 0  # the first layer whose map is compared (0: the stem)
    freeze_norm: float = 0.12  # after that, BatchNorm uses its running statistics
    # The first `rest` layers have large maps and few weights. In this share of the steps they
    # learn nothing, which saves a third of the time.
    rest: int = 3
    rest_share: float = 0.6
    statistics: int = 24  # batches on which the teacher's variances are measured

    def own_share(self, step: int) -> float:
        """Return the probability that a block is fed with the student's own map in this step."""
        ramp = self.own_from - self.stitched_until
        return min(max((step / self.steps - self.stitched_until) / ramp, 0), 1)


class FeatureDistillation:
    """An objective: match every block of the teacher on mixtures of unlabelled sound."""

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        mixer: Mixer,
        config: FeatureConfig,
        evaluate: Callable[[nn.Module], Metrics],
        device: str = "cpu",
    ) -> None:
        self.model = student.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.to(device)
        self.teacher = _fused(teacher).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher.to(device)
        self.device = device
        self.mixer, self.config, self._evaluate = mixer, config, evaluate
        self.map_variance, self.pooled_variance = self._measure()
        self.logit_variance = self._measure_logits()

    def batch(self, step: int) -> Tensor:
        """Return the log-mels [B, M, F] of one step."""
        return self.mixer.batch(step)

    def evaluate(self) -> Metrics:
        """Return the scores of the function `evaluate` that the constructor was given."""
        return self._evaluate(self.model)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, Metrics]:
        """Sum the normalised errors of maps, pooled values and logits, and the loss of the tags."""
        cfg = self.config
        if step >= cfg.freeze_norm * cfg.steps:
            _freeze_norm(self.model)
        with torch.no_grad():
            targets = self.teacher.feature_maps(batch)
            target_logits = self.teacher.classifier(targets[-1])
        maps, logits = self._stitched(batch, targets, cfg.own_share(step))
        map_loss, pooled_loss = batch.new_zeros(()), batch.new_zeros(())
        errors: Metrics = {}
        for number in range(cfg.first, len(maps)):
            if maps[number] is targets[number]:  # this layer rests
                continue
            error = maps[number] - targets[number]  # B C f t
            by_channel = error.square().mean((0, 2, 3)) / self.map_variance[number]
            pooled = error.mean((2, 3)).square().mean(0) / self.pooled_variance[number]
            map_loss, pooled_loss = map_loss + by_channel.mean(), pooled_loss + pooled.mean()
            errors[f"map_b{number}"] = float(by_channel.detach().mean())
        tags = functional.binary_cross_entropy_with_logits(logits, target_logits.sigmoid())
        logit_error = ((logits - target_logits).square().mean(0) / self.logit_variance).mean()
        total = map_loss + cfg.pooled * pooled_loss + cfg.tags * tags + cfg.logits * logit_error
        count = len(maps) - cfg.first
        return total, errors | {
            "map_error": float(map_loss.detach()) / count,
            "pooled_error": float(pooled_loss.detach()) / count,
            "tag_loss": float(tags.detach()),
            "logit_error": float(logit_error.detach()),
        }

    def _stitched(
        self, batch: Tensor, targets: Sequence[Tensor], own_share: float
    ) -> tuple[list[Tensor], Tensor]:
        """Return the student's maps [B, C, f, t] and logits.

        With probability `own_share`, a block is fed with the student's own map before it, or else
        with the teacher's (one of `targets`). A resting layer returns the teacher's map itself,
        unless the first layer after the resting ones needs the student's.
        """
        cfg = self.config
        own = (torch.rand(len(targets) + 1) < own_share).tolist()
        resting = cfg.rest if float(torch.rand(())) < cfg.rest_share else 0
        maps: list[Tensor] = []
        x = batch[:, None]
        for number, layer in enumerate(self.model.features):
            if number > cfg.first and not own[number]:
                x = targets[number - 1]
            if number < resting and not own[resting]:
                maps.append(targets[number])
                continue
            with torch.set_grad_enabled(number >= resting):
                x = layer(x)[0] if isinstance(layer, InvertedResidual) else layer(x)
            maps.append(x)
        if not own[-1]:
            x = targets[-1]
        return maps, self.model.classifier(x)

    @torch.no_grad()
    def start_from_statistics(self) -> None:
        """Before training, set the scale and shift of each block's last BatchNorm.

        What a student's block adds to its input then has the mean, and half the standard
        deviation, of what the teacher's block adds. All other weights stay random.
        """
        mean: list[Tensor] = []
        square: list[Tensor] = []
        before = self.config.first - 1  # the map that the first compared block is fed with
        for step in range(self.config.statistics):
            batch = self.sample(step)
            maps = self.teacher.feature_maps(batch)
            if before >= 0:
                maps[before] = self.model.feature_maps(batch)[before]
            for number in range(1, len(maps) - 1):
                block = self.model.features[number]
                added = maps[number] - maps[number - 1] if block.residual else maps[number]
                if step == 0:
                    mean.append(added.new_zeros(added.shape[1]))
                    square.append(added.new_zeros(added.shape[1]))
                mean[number - 1] += added.mean((0, 2, 3)) / self.config.statistics
                square[number - 1] += added.square().mean((0, 2, 3)) / self.config.statistics
        for block, first, second in zip(self.model.features[1:-1], mean, square, strict=True):
            norm = block.block[-1][1]
            norm.bias.copy_(first)
            norm.weight.copy_(0.5 * (second - first.square()).clamp(min=1e-6).sqrt())

    @torch.no_grad()
    def _measure_logits(self) -> Tensor:
        """Return the variance of each of the teacher's logits, float32 [classes]."""
        steps = range(self.config.statistics)
        logits = torch.cat([self.teacher(self.sample(step)) for step in steps])
        return _spread(logits.mean(0), logits.square().mean(0))

    def sample(self, number: int) -> Tensor:
        """Return log-mels [B, M, F] that no training step uses."""
        return self.mixer.batch(-1 - number & 0xFFFFFFFF).to(self.device)

    @torch.no_grad()
    def _measure(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the variances [C] of each of the teacher's maps, and of their pooled values."""
        moments: list[list[Tensor]] = []
        for step in range(self.config.statistics):
            maps = self.teacher.feature_maps(self.sample(step))
            for number, x in enumerate(maps):
                if step == 0:
                    moments.append([x.new_zeros(5, x.shape[1])[i] for i in range(5)])
                sums, pooled = moments[number], x.mean((2, 3))  # B C
                sums[0] += x.mean((0, 2, 3))
                sums[1] += x.square().mean((0, 2, 3))
                sums[2] += pooled.mean(0)
                sums[3] += pooled.square().mean(0)
        count = self.config.statistics
        spreads = [
            [_spread(first / count, second / count) for first, second in (m[:2], m[2:4])]
            for m in moments
        ]
        return [pair[0] for pair in spreads], [pair[1] for pair in spreads]


def student_of(teacher: AudioEmbedder, name: str) -> AudioEmbedder:
    """Make a model of the teacher's architecture, with random weights from torch's generator."""
    spec = replace(teacher.spec, weights="", url="", sha256=None, mean_ap=None)
    return AudioEmbedder(name, spec, teacher.taps, teacher.labels)


def _spread(mean: Tensor, square: Tensor) -> Tensor:
    """Return variances [C], made a little larger, from the means of values and of squares."""
    variance = (square - mean.square()).clamp(min=0)
    return variance + EPSILON * variance.mean()


def _freeze_norm(model: nn.Module) -> None:
    """Let every BatchNorm use its running statistics, and leave these as they are."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _fused(teacher: Backbone) -> Backbone:
    """Return a copy for inference, whose BatchNorms are folded into the convolutions."""
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, ConvNormActivation):
            convolution, norm = module[0], module[1]
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            module[0] = fuse_conv_bn_eval(convolution, norm)
            module[1] = nn.Identity()
    return teacher
