"""Changes to waveforms and log-mels that keep their labels (arXiv 2310.15648, V-B).

Every function takes its own generator, so that a batch can be made again from its step.
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
    """The papers' figures; 0 switches each off."""

    roll_ms: float = 125.0
    gain_db: float = 7.0
    wave_mixup: float = 0.5  # share of the clips mixed as waveforms
    mel_mixup: float = 0.3  # alpha of the Beta distribution of log-mel mixing
    fmin_hz: float = 10.0
    fmax_hz: float = 2000.0  # full range, around the configured fmax


def roll(wave: Samples, limit: int, rng: Generator) -> Samples:
    """Shift in time by up to `limit` samples, what leaves one end entering the other."""
    return np.asarray(np.roll(wave, int(rng.integers(-limit, limit + 1))))


def gain(wave: Samples, decibel: float, rng: Generator) -> Samples:
    """Louder or softer by up to so many decibels."""
    return np.asarray(wave * np.float32(10 ** (rng.uniform(-decibel, decibel) / 20)))


def fit(wave: Samples, samples: int, rng: Generator | None = None) -> Samples:
    """Cut at random (from the start without `rng`), or pad with silence: [S] -> [samples]."""
    spare = len(wave) - samples
    if spare <= 0:
        return np.pad(wave, (0, -spare))
    begin = int(rng.integers(spare + 1)) if rng is not None else 0
    return wave[begin : begin + samples]


def jittered(config: MelConfig, augment: AugmentConfig, rng: Generator) -> LogMel:
    """A front end with fmin from [0, fmin_hz) and fmax within half of fmax_hz of its own."""
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
    """A pairing of the batch with itself; the same for everything that belongs to an example."""

    partner: Tensor  # int64 [B]
    share: Tensor  # float32 [B], of the example itself, at least a half

    @classmethod
    def draw(cls, size: int, alpha: float, rng: Generator) -> Mixup:
        """Partners at random, shares from Beta(alpha, alpha)."""
        share = rng.beta(alpha, alpha, size) if alpha > 0 else np.ones(size)
        return cls(
            torch.from_numpy(rng.permutation(size)),
            torch.from_numpy(np.maximum(share, 1 - share).astype(np.float32)),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[B, ...] -> the mixture, same shape."""
        share = self.share.view(-1, *[1] * (x.ndim - 1))
        return x * share + x[self.partner] * (1 - share)


def mix_waves(first: Samples, second: Samples, rng: Generator) -> tuple[Samples, float]:
    """Two clips [S] without their means, and the share of the first, at least a half."""
    share = float(rng.beta(2.0, 2.0))
    share = max(share, 1 - share)
    mixed = (first - first.mean()) * share + (second - second.mean()) * (1 - share)
    return mixed.astype(np.float32), share
