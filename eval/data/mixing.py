"""Endless variety from a few hours: clips cut, warped, filtered, reverberated and mixed.

Everything happens on mel power, where gains and sums are exact and the rest is plausible.
A batch is a pure function of (seed, step): no state to save, any worker can make it.
Axes: B batch, M mel bands, F frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.signal import lfilter

from embedder.zoo import MEL_32K
from eval.data.corpus import Corpus, to_log_mel

Power = NDArray[np.float32]
BANDS: Final = MEL_32K.n_mels
FRAME_S: Final = MEL_32K.hop / MEL_32K.sample_rate
TOP_MEL: Final = 1127.0 * float(np.log1p(MEL_32K.fmax / 700.0))
SILENT: Final = 1e-12  # mean power below which a crop has no level to speak of


@dataclass(frozen=True, slots=True)
class MixConfig:
    """How often and how far; probabilities per source unless said otherwise."""

    sources: tuple[float, ...] = (0.45, 0.30, 0.15, 0.10)  # of one, two, ... clips in an example
    quieter_db: float = 25.0  # how far a further source may lie below the first
    stretch: float = 0.3  # time stretch by 0.7 to 1.4
    pitch: float = 0.4  # up or down by at most seven semitones
    equalise: float = 0.5  # a smooth random filter of about 6 dB
    cut: float = 0.15  # a steep low-pass, high-pass or both
    reverb: float = 0.25
    swell: float = 0.15  # level wandering within the example
    noise: float = 0.3  # a noise floor, per example
    gap: float = 0.1  # a stretch of digital silence, per example
    silence: float = 0.01  # nothing but the floor, per example
    natural: float = 0.6  # keeps the recorded level, give or take 10 dB, per example
    # (crop length in frames, share of the batches); a batch holds `frames` frames in all.
    lengths: tuple[tuple[int, float], ...] = (
        (16, 0.08),
        (50, 0.10),
        (100, 0.17),
        (200, 0.15),
        (300, 0.25),
        (500, 0.20),
        (1000, 0.05),
    )
    frames: int = 4800
    max_batch: int = 96


class Mixer:
    """Random examples from a corpus; `batch` is deterministic in its step."""

    def __init__(
        self, corpus: Corpus, config: MixConfig | None = None, seed: int = 0, rank: int = 0
    ) -> None:
        self.corpus, self.config, self.seed, self.rank = corpus, config or MixConfig(), seed, rank
        # Long ambiences count for more than one-shots, but less than by their length.
        weights = np.array([min(clip.frames, 12_000) for clip in corpus.clips]) ** 0.7
        self._cumulative = np.cumsum(weights / weights.sum())
        self._noises = [c for c in corpus.clips if c.path.startswith("synthetic/white_noise")]

    def batch(self, step: int) -> torch.Tensor:
        """Normalised log-mels [B, M, F] for one step, their shape the same for every rank."""
        rng = np.random.default_rng([self.seed, step])
        lengths, shares = zip(*self.config.lengths, strict=True)
        frames = int(rng.choice(lengths, p=np.array(shares) / sum(shares)))
        size = min(self.config.max_batch, max(1, self.config.frames // frames))
        rng = np.random.default_rng([self.seed, step, self.rank])
        power = np.stack([self.example(rng, frames) for _ in range(size)])  # B F M
        return to_log_mel(torch.from_numpy(power)).transpose(1, 2).contiguous()

    def example(self, rng: Generator, frames: int) -> Power:
        """One mixture as mel power [F, M]."""
        cfg = self.config
        if rng.random() < cfg.silence:
            return np.full((frames, BANDS), 10 ** rng.uniform(-9, -5), np.float32)
        count = 1 + int(rng.choice(len(cfg.sources), p=np.array(cfg.sources)))
        mix = self.source(rng, frames)
        level = max(float(mix.mean()), SILENT)
        for _ in range(count - 1):
            mix = mix + _at_level(self.source(rng, frames), level, -rng.uniform(0, cfg.quieter_db))
        if self._noises and rng.random() < cfg.noise:
            clip = self._noises[int(rng.integers(len(self._noises)))]
            begin = int(rng.integers(max(1, clip.frames - frames)))
            floor = fit(self.corpus.power(clip, begin, frames), frames, rng)
            mix += _at_level(floor * equaliser(rng, 10.0), level, -rng.uniform(0, 45))
        if rng.random() < cfg.natural:
            decibel = rng.uniform(-10, 10)
        else:  # from the threshold of the floor to clipping
            decibel = rng.uniform(-60, 25) - 10 * np.log10(max(float(mix.mean()), SILENT))
        mix *= np.float32(10 ** (decibel / 10))
        if rng.random() < cfg.gap:
            begin, stop = np.sort(rng.integers(0, frames + 1, 2))
            mix[begin:stop] = 0.0
        return np.asarray(mix, np.float32)

    def source(self, rng: Generator, frames: int) -> Power:
        """One clip, cut and changed: mel power [F, M]."""
        cfg = self.config
        clip = self.corpus.clips[int(np.searchsorted(self._cumulative, rng.random()))]
        rate = float(np.exp(rng.uniform(-0.35, 0.35))) if rng.random() < cfg.stretch else 1.0
        needed = int(np.ceil(frames * rate)) + 1
        begin = int(rng.integers(max(1, clip.frames - needed + 1)))
        power = self.corpus.power(clip, begin, needed)
        if rate != 1.0:
            power = power[(np.arange(max(1, int(len(power) / rate))) * rate).astype(int)]
        power = fit(power, frames, rng)
        if rng.random() < cfg.pitch:
            power = power @ pitch_shift(float(rng.uniform(-7, 7)))
        if rng.random() < cfg.equalise:
            power = power * equaliser(rng, 6.0)
        if rng.random() < cfg.cut:
            power = power * steep_filter(rng)
        if rng.random() < cfg.reverb:
            power = reverberate(power, float(10 ** rng.uniform(-1, 0.5)), rng.uniform(-15, 3))
        if rng.random() < cfg.swell:
            knots = rng.uniform(-30, 0, int(rng.integers(2, 8)))
            decibels = np.interp(np.linspace(0, 1, frames), np.linspace(0, 1, len(knots)), knots)
            power = power * (10 ** (decibels / 10)).astype(np.float32)[:, None]
        return np.asarray(power, np.float32)


def fit(power: Power, frames: int, rng: Generator) -> Power:
    """Cut, or place at random in silence, or repeat with pauses, to so many frames."""
    spare = frames - len(power)
    if spare <= 0:
        return power[:frames]
    if rng.random() < 0.5:
        period = len(power) + int(rng.integers(0, len(power) + 50))
        once = np.zeros((period, BANDS), np.float32)
        once[: len(power)] = power
        tiled = np.tile(once, (frames // period + 2, 1))
        begin = int(rng.integers(period))
        return tiled[begin : begin + frames]
    placed = np.zeros((frames, BANDS), np.float32)
    begin = int(rng.integers(spare + 1))
    placed[begin : begin + len(power)] = power
    return placed


def pitch_shift(semitones: float) -> Power:
    """Matrix [M, M] that, multiplied from the right, moves power along frequency."""
    centres = TOP_MEL * np.arange(1, BANDS + 1) / (BANDS + 1)
    source_hertz = 700.0 * np.expm1(centres / 1127.0) / 2 ** (semitones / 12)
    position = 1127.0 * np.log1p(source_hertz / 700.0) * (BANDS + 1) / TOP_MEL - 1
    weights = 1.0 - np.abs(position[None] - np.arange(BANDS)[:, None])
    return np.maximum(weights, 0.0).astype(np.float32)


def equaliser(rng: Generator, decibel: float) -> Power:
    """A smooth gain per band [M], of about so many decibels up and down."""
    bands = np.linspace(0, np.pi, BANDS)
    curve = sum(
        rng.normal(0, decibel) / np.sqrt(order) * np.cos(order * bands + rng.uniform(0, np.pi))
        for order in range(1, 6)
    )
    return np.asarray(10 ** (np.asarray(curve) / 10), np.float32)


def steep_filter(rng: Generator) -> Power:
    """A low-pass, high-pass or band-pass gain per band [M], 1 to 6 dB a band."""
    bands = np.arange(BANDS)
    low = rng.integers(0, 70) if rng.random() < 0.6 else -BANDS
    high = rng.integers(45, BANDS) if rng.random() < 0.6 else 2 * BANDS
    outside = np.maximum(low - bands, 0) + np.maximum(bands - high, 0)
    return np.asarray(10 ** (-outside * rng.uniform(1, 6) / 10), np.float32)


def reverberate(power: Power, seconds: float, wet_db: float) -> Power:
    """Add an exponential tail that falls by 60 dB in so many seconds."""
    decay = 10 ** (-6 * FRAME_S / seconds)
    wet = 10 ** (wet_db / 10) * (1 - decay)
    tail = lfilter([np.float32(wet)], np.array([1, -decay], np.float32), power, axis=0)
    return np.asarray(power + tail, np.float32)


def _at_level(power: Power, level: float, decibel: float) -> Power:
    mean = float(power.mean())
    if mean < SILENT:
        return power
    return np.asarray(power * np.float32(level / mean * 10 ** (decibel / 10)))
