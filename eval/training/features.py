"""Feature distillation: a student learns its teacher's feature maps, block by block.

Where student and teacher have the same architecture, each student block can be fed with the
teacher's own input to that block ("stitched"), so that it learns a shallow, local regression
instead of waiting for the blocks before it. Over the run, blocks are fed more and more often
with what the student itself computed, and at last always: from then on it learns end to end.
Axes: B batch, C channels, f frequency, t time, M mel bands, F frames.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedder.model import AudioEmbedder
from embedder.networks.backbone import Backbone
from embedder.networks.blocks import ConvNormActivation, InvertedResidual
from eval.data.mixing import Mixer
from eval.training.trainer import Metrics

EPSILON = 0.02  # of the mean variance, added to each channel's: keeps still channels quiet


@dataclass(frozen=True, slots=True)
class FeatureConfig:
    """Weights of the loss, and when the student learns from its own maps (shares of the run)."""

    steps: int
    stitched_until: float = 0.15  # before: teacher's maps only
    own_from: float = 0.45  # after: the student's own maps only
    pooled: float = 1.0  # weight of the maps' means against the maps themselves
    tags: float = 10.0  # weight of the cross-entropy on the teacher's probabilities
    logits: float = 1.0  # weight of the normalised squared error of the logits
    first: int = 0  # the first layer regressed (0: the stem); those before learn through it
    freeze_norm: float = 0.12  # after: BatchNorm with its running statistics
    rest: int = 3  # the first so many layers, of which the maps are large and the weights few,
    rest_share: float = 0.6  # learn nothing in this share of the steps, which saves a third
    statistics: int = 24  # batches that measure the teacher's variances

    def own_share(self, step: int) -> float:
        """Probability that a block is fed with the student's own map."""
        at = step / self.steps
        return min(max((at - self.stitched_until) / (self.own_from - self.stitched_until), 0), 1)


class FeatureDistillation:
    """A trainer's task: match every block of the teacher on mixtures of unlabelled sound."""

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
        """Log-mels [B, M, F] of one step."""
        return self.mixer.batch(step)

    def evaluate(self) -> Metrics:
        """Whatever the caller wants to know of the student."""
        return self._evaluate(self.model)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, Metrics]:
        """Normalised errors of maps and their means, and cross-entropy of the tags."""
        cfg = self.config
        if step >= cfg.freeze_norm * cfg.steps:
            _freeze_norm(self.model)
        with torch.no_grad():
            wanted = self.teacher.feature_maps(batch)
            wanted_logits = self.teacher.classifier(wanted[-1])
        maps, logits = self._stitched(batch, wanted, cfg.own_share(step))
        map_loss, pooled_loss = batch.new_zeros(()), batch.new_zeros(())
        errors: Metrics = {}
        for number in range(cfg.first, len(maps)):
            if maps[number] is wanted[number]:
                continue
            error = maps[number] - wanted[number]  # B C f t
            each = error.square().mean((0, 2, 3)) / self.map_variance[number]
            pooled = error.mean((2, 3)).square().mean(0) / self.pooled_variance[number]
            map_loss, pooled_loss = map_loss + each.mean(), pooled_loss + pooled.mean()
            errors[f"map_b{number}"] = float(each.detach().mean())
        tags = functional.binary_cross_entropy_with_logits(logits, wanted_logits.sigmoid())
        logit_error = ((logits - wanted_logits).square().mean(0) / self.logit_variance).mean()
        total = map_loss + cfg.pooled * pooled_loss + cfg.tags * tags + cfg.logits * logit_error
        count = len(maps) - cfg.first
        return total, errors | {
            "map_error": float(map_loss.detach()) / count,
            "pooled_error": float(pooled_loss.detach()) / count,
            "tag_loss": float(tags.detach()),
            "logit_error": float(logit_error.detach()),
        }

    def _stitched(
        self, batch: Tensor, wanted: Sequence[Tensor], own_share: float
    ) -> tuple[list[Tensor], Tensor]:
        """The student's maps and logits, each part fed with its own or the teacher's map."""
        cfg = self.config
        own = (torch.rand(len(wanted) + 1) < own_share).tolist()
        resting = cfg.rest if float(torch.rand(())) < cfg.rest_share else 0
        maps: list[Tensor] = []
        x = batch[:, None]
        for number, layer in enumerate(self.model.features):
            if number > cfg.first and not own[number]:
                x = wanted[number - 1]
            if number < resting and not own[resting]:
                maps.append(wanted[number])  # nobody needs the student's
                continue
            with torch.set_grad_enabled(number >= resting):
                x = layer(x)[0] if isinstance(layer, InvertedResidual) else layer(x)
            maps.append(x)
        if not own[-1]:
            x = wanted[-1]
        return maps, self.model.classifier(x)

    @torch.no_grad()
    def start_from_statistics(self) -> None:
        """Scale and shift each block's output as the teacher's is, before training.

        What a block adds to its input gets the mean, and half the deviation, that the
        teacher's has; everything else stays random.
        """
        mean: list[Tensor] = []
        square: list[Tensor] = []
        before = self.config.first - 1  # the map that the first regressed block gets
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
        """Variance [N] of each of the teacher's logits."""
        steps = range(self.config.statistics)
        logits = torch.cat([self.teacher(self.sample(step)) for step in steps])
        return _spread(logits.mean(0), logits.square().mean(0))

    def sample(self, number: int) -> Tensor:
        """A batch that no training step sees."""
        return self.mixer.batch(-1 - number & 0xFFFFFFFF).to(self.device)

    @torch.no_grad()
    def _measure(self) -> tuple[list[Tensor], list[Tensor]]:
        """Variance per channel [C] of each of the teacher's maps, and of its mean per example."""
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
    """The teacher's architecture with random weights, drawn from torch's generator."""
    spec = replace(teacher.spec, weights="", url="", sha256=None, mean_ap=None)
    return AudioEmbedder(name, spec, teacher.taps, teacher.labels)


def _spread(mean: Tensor, square: Tensor) -> Tensor:
    variance = (square - mean.square()).clamp(min=0)
    return variance + EPSILON * variance.mean()


def _freeze_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _fused(teacher: Backbone) -> Backbone:
    """A copy for inference, BatchNorm folded into the convolutions."""
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, ConvNormActivation):
            convolution, norm = module[0], module[1]
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            module[0] = fuse_conv_bn_eval(convolution, norm)
            module[1] = nn.Identity()
    return teacher
