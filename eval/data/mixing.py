"""Random training examples from a corpus: clips are cut, stretched, filtered and mixed.

Everything happens on mel power. There, gains and sums of sounds are exact; pitch, stretch and
reverberation only approximate what they would be on waveforms. A batch follows from
(seed, step, rank) alone: there is no state to save, and any worker can make it.
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
    """How often and how strongly sound is changed.

    Numbers without another comment are probabilities that a source (a clip in an example) is
    changed so.
    """

    # Chance that an example has one, two, ... sources.
    sources: tuple[float, ...] = (0.45, 0.30, 0.15, 0.10)
    quieter_db: float = 25.0  # a further source lies up to so far below the first
    stretch: float = 0.3  # time stretch by 0.7 to 1.4
    pitch: float = 0.4  # up or down by at most seven semitones
    equalise: float = 0.5  # a smooth random filter of about 6 dB
    cut: float = 0.15  # a steep low-pass, high-pass or both
    reverb: float = 0.25
    swell: float = 0.15  # the level wanders within the example
    noise: float = 0.3  # chance of a noise floor in an example
    gap: float = 0.1  # chance of a stretch of digital silence in an example
    silence: float = 0.01  # chance of an example that is nothing but a faint floor
    natural: float = 0.6  # chance that an example keeps its recorded level, within 10 dB
    # (length of the examples in frames, share of the batches that have this length).
    lengths: tuple[tuple[int, float], ...] = (
        (16, 0.08),
        (50, 0.10),
        (100, 0.17),
        (200, 0.15),
        (300, 0.25),
        (500, 0.20),
        (1000, 0.05),
    )
    frames: int = 4800  # of all examples of a batch together
    max_batch: int = 96  # examples


class Mixer:
    """Random examples from a corpus; equal steps give equal batches."""

    def __init__(
        self, corpus: Corpus, config: MixConfig | None = None, seed: int = 0, rank: int = 0
    ) -> None:
        self.corpus, self.config, self.seed, self.rank = corpus, config or MixConfig(), seed, rank
        # Long recordings are drawn more often than short ones, but less than their length says.
        weights = np.array([min(clip.frames, 12_000) for clip in corpus.clips]) ** 0.7
        self._cumulative = np.cumsum(weights / weights.sum())
        self._noises = [c for c in corpus.clips if c.path.startswith("synthetic/white_noise")]

    def batch(self, step: int) -> torch.Tensor:
        """Return normalised log-mels [B, M, F] of one step, of the same shape for every rank."""
        rng = np.random.default_rng([self.seed, step])
        lengths, shares = zip(*self.config.lengths, strict=True)
        frames = int(rng.choice(lengths, p=np.array(shares) / sum(shares)))
        size = min(self.config.max_batch, max(1, self.config.frames // frames))
        rng = np.random.default_rng([self.seed, step, self.rank])
        power = np.stack([self.example(rng, frames) for _ in range(size)])  # B F M
        return to_log_mel(torch.from_numpy(power)).transpose(1, 2).contiguous()

    def example(self, rng: Generator, frames: int) -> Power:
        """Make one example: a mixture as mel power [F, M] of so many frames."""
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
        else:  # any level, from barely above the front end's floor up to clipping
            decibel = rng.uniform(-60, 25) - 10 * np.log10(max(float(mix.mean()), SILENT))
        mix *= np.float32(10 ** (decibel / 10))
        if rng.random() < cfg.gap:
            begin, stop = np.sort(rng.integers(0, frames + 1, 2))
            mix[begin:stop] = 0.0
        return np.asarray(mix, np.float32)

    def source(self, rng: Generator, frames: int) -> Power:
        """Draw one clip, cut it and change it at random: mel power [F, M] of so many frames."""
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
    """Bring mel power to so many frames: [*, M] -> [F, M].

    Longer sound is cut. Shorter sound stands somewhere in silence, or is repeated with pauses.
    """
    spare = frames - len(power)
    if spare <= 0:
        return power[:frames]
    if rng.random() < 0.5:
        period = len(power) + int(rng.integers(0, len(power) + 50))
        cycle = np.zeros((period, BANDS), np.float32)
        cycle[: len(power)] = power
        tiled = np.tile(cycle, (frames // period + 2, 1))
        begin = int(rng.integers(period))
        return tiled[begin : begin + frames]
    padded = np.zeros((frames, BANDS), np.float32)
    begin = int(rng.integers(spare + 1))
    padded[begin : begin + len(power)] = power
    return padded


def pitch_shift(semitones: float) -> Power:
    """Return a matrix [M, M]: power [F, M] @ matrix is the sound shifted in pitch."""
    centres = TOP_MEL * np.arange(1, BANDS + 1) / (BANDS + 1)
    source_hertz = 700.0 * np.expm1(centres / 1127.0) / 2 ** (semitones / 12)
    position = 1127.0 * np.log1p(source_hertz / 700.0) * (BANDS + 1) / TOP_MEL - 1
    weights = 1.0 - np.abs(position[None] - np.arange(BANDS)[:, None])
    return np.maximum(weights, 0.0).astype(np.float32)


def equaliser(rng: Generator, decibel: float) -> Power:
    """Draw a smooth gain of each band [M], about `decibel` up and down."""
    bands = np.linspace(0, np.pi, BANDS)
    curve = sum(
        rng.normal(0, decibel) / np.sqrt(order) * np.cos(order * bands + rng.uniform(0, np.pi))
        for order in range(1, 6)
    )
    return np.asarray(10 ** (np.asarray(curve) / 10), np.float32)


def steep_filter(rng: Generator) -> Power:
    """Draw gains [M] of a low-pass, high-pass or band-pass that falls by 1 to 6 dB a band."""
    bands = np.arange(BANDS)
    low = rng.integers(0, 70) if rng.random() < 0.6 else -BANDS
    high = rng.integers(45, BANDS) if rng.random() < 0.6 else 2 * BANDS
    outside = np.maximum(low - bands, 0) + np.maximum(bands - high, 0)
    return np.asarray(10 ** (-outside * rng.uniform(1, 6) / 10), np.float32)


def reverberate(power: Power, seconds: float, wet_db: float) -> Power:
    """Add a tail to mel power [F, M] that falls by 60 dB in so many seconds."""
    decay = 10 ** (-6 * FRAME_S / seconds)
    wet = 10 ** (wet_db / 10) * (1 - decay)
    tail = lfilter([np.float32(wet)], np.array([1, -decay], np.float32), power, axis=0)
    return np.asarray(power + tail, np.float32)


def _at_level(power: Power, level: float, decibel: float) -> Power:
    """Scale mel power to lie `decibel` above the mean power `level`; silence stays as it is."""
    mean = float(power.mean())
    if mean < SILENT:
        return power
    return np.asarray(power * np.float32(level / mean * 10 ** (decibel / 10)))
