"""Random changes of waveforms and log-mels that keep their labels (arXiv 2310.15648, V-B).

Every function takes a random generator, so that a batch can be made again from its step.
Waveforms are float32 in about [-1, 1].
Axes: B batch, S samples, M mel bands, F frames, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from embedder.frontend import LogMel
from embedder.zoo import MelConfig

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """How strongly sound is changed, as in the papers; 0 switches a change off."""

    roll_ms: float = 125.0
    gain_db: float = 7.0
    wave_mixup: float = 0.5  # share of the clips mixed as waveforms
    mel_mixup: float = 0.3  # alpha of the Beta distribution of log-mel mixing
    fmin_hz: float = 10.0
    fmax_hz: float = 2000.0  # width of the range around the configured fmax


def roll(wave: Samples, limit: int, rng: Generator) -> Samples:
    """Shift [S] in time by up to `limit` samples; what leaves at one end enters at the other."""
    return np.asarray(np.roll(wave, int(rng.integers(-limit, limit + 1))))


def gain(wave: Samples, decibel: float, rng: Generator) -> Samples:
    """Make [S] louder or softer, by up to so many decibels."""
    return np.asarray(wave * np.float32(10 ** (rng.uniform(-decibel, decibel) / 20)))


def fit(wave: Samples, samples: int, rng: Generator | None = None) -> Samples:
    """Cut, or pad with silence at the end: [S] -> [samples].

    The cut begins at a random sample, without `rng` at the first.
    """
    spare = len(wave) - samples
    if spare <= 0:
        return np.pad(wave, (0, -spare))
    begin = int(rng.integers(spare + 1)) if rng is not None else 0
    return wave[begin : begin + samples]


def jittered(config: MelConfig, augment: AugmentConfig, rng: Generator) -> LogMel:
    """Make a front end with a random fmin, up to fmin_hz higher, and a random fmax near its own."""
    half = augment.fmax_hz / 2
    return LogMel(
        replace(
            config,
            fmin=config.fmin + float(rng.uniform(0, augment.fmin_hz)),
            fmax=config.fmax + float(rng.uniform(-half, half)),
        )
    )


@dataclass(frozen=True, slots=True)
class Mixup:
    """A rule that mixes each example of a batch with another one.

    The same rule is applied to all that belongs to an example: its input and its targets.
    """

    partner: Tensor  # int64 [B], the index of the other example
    share: Tensor  # float32 [B] from 0.5 to 1, the weight of the example itself

    @classmethod
    def draw(cls, size: int, alpha: float, rng: Generator) -> Mixup:
        """Draw partners at random and shares from Beta(alpha, alpha); alpha 0 mixes nothing."""
        share = rng.beta(alpha, alpha, size) if alpha > 0 else np.ones(size)
        return cls(
            torch.from_numpy(rng.permutation(size)),
            torch.from_numpy(np.maximum(share, 1 - share).astype(np.float32)),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Mix a batch [B, ...] with itself; the shape stays."""
        share = self.share.view(-1, *[1] * (x.ndim - 1))
        return x * share + x[self.partner] * (1 - share)


def mix_waves(first: Samples, second: Samples, rng: Generator) -> tuple[Samples, float]:
    """Mix two clips [S] without their means; return [S] and the share of the first, 0.5 to 1."""
    share = float(rng.beta(2.0, 2.0))
    share = max(share, 1 - share)
    mixed = (first - first.mean()) * share + (second - second.mean()) * (1 - share)
    return mixed.astype(np.float32), share
