"""Mixtures of ESC-10 excerpts over faint noise, whose onsets and offsets are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from embedder.audio.decode import Samples, load_audio
from embedder.errors import BadRequest
from eval.data.clips import Clip, Event
from eval.data.esc10_fsdd import ESC10, esc10_class, esc10_files, esc10_fold

MIX_SECONDS: Final = 10.0
BACKGROUND: Final = 10 ** (-50 / 20)
EXCERPT: Final = 10 ** (-20 / 20)  # RMS of an excerpt, before its gain
FADE_SECONDS: Final = 0.01


def mixtures(data: Path, folds: str, count: int, seed: int, split: str) -> list[Clip]:
    """So many mixtures of ESC-10 excerpts from these folds, with known onsets and offsets."""
    usable = [path for path in esc10_files(data) if esc10_fold(path) in [*folds]]
    if not usable:
        raise BadRequest(f"no sounds of the folds {folds!r} in {data / ESC10}")
    rng = np.random.default_rng(seed)
    return [_mixture(f"{split}{index:03d}", split, usable, rng) for index in range(count)]


@dataclass(frozen=True, slots=True)
class _Excerpt:
    """So many seconds of a file, its loudest, to be heard from `onset` on."""

    path: Path
    onset: float
    seconds: float
    gain: float


@dataclass(frozen=True, slots=True)
class _Mixture:
    """Excerpts over noise, at any rate."""

    excerpts: tuple[_Excerpt, ...]
    seed: int

    def __call__(self, rate: int) -> Samples:
        noise = np.random.default_rng(self.seed).standard_normal(round(MIX_SECONDS * rate))
        mixed = (BACKGROUND * noise).astype(np.float32)
        for excerpt in self.excerpts:
            start = round(excerpt.onset * rate)
            sound = _loudest(load_audio(excerpt.path, rate), round(excerpt.seconds * rate))
            sound = sound[: mixed.size - start] * np.float32(excerpt.gain)
            mixed[start : start + sound.size] += _faded(sound, round(FADE_SECONDS * rate))
        quiet: Samples = mixed / np.float32(max(1.0, float(np.abs(mixed).max())))
        return quiet


def _mixture(name: str, split: str, files: list[Path], rng: np.random.Generator) -> Clip:
    """Two to six excerpts of 0.5 to 2 s; those of one class never overlap."""
    excerpts: list[_Excerpt] = []
    taken: list[Event] = []
    for path in rng.choice(np.array(files, dtype=object), rng.integers(2, 7), replace=False):
        seconds = round(float(rng.uniform(0.5, 2.0)), 2)
        onset = round(float(rng.uniform(0.2, MIX_SECONDS - 0.2 - seconds)), 2)
        gain = float(10 ** (rng.uniform(-6, 6) / 20))
        event = Event(esc10_class(path), onset, round(onset + seconds, 2))
        if all(event.label != e.label or _apart(event, e) for e in taken):
            excerpts.append(_Excerpt(path, onset, seconds, gain))
            taken.append(event)
    sound = _Mixture(tuple(excerpts), int(rng.integers(2**31)))
    return Clip(name, sound, split, events=tuple(sorted(taken, key=lambda e: e.onset)))


def _apart(one: Event, other: Event) -> bool:
    return one.onset > other.offset + 0.5 or other.onset > one.offset + 0.5


def _loudest(samples: Samples, length: int) -> Samples:
    """The stretch of most energy, brought to EXCERPT."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    length = min(length, samples.size)
    start = int(np.argmax(energy[length:] - energy[:-length]))
    loud = samples[start : start + length]
    rms = float(np.sqrt(np.mean(np.square(loud, dtype=np.float64))))
    scaled: Samples = loud * np.float32(EXCERPT / max(rms, 1e-9))
    return scaled


def _faded(samples: Samples, length: int) -> Samples:
    ramp = np.minimum(1, (np.arange(samples.size, dtype=np.float32) + 1) / max(1, length))
    faded: Samples = samples * ramp * ramp[::-1]
    return faded
