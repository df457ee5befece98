"""Mixtures of ESC-10 excerpts over faint noise, whose onsets and offsets are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from embedder.audio.decode import Samples, load_audio
from embedder.errors import BadRequest
from eval.data.annotations import TrueEvent
from eval.data.clips import Clip
from eval.data.esc10_fsdd import ESC10, esc10_class, esc10_files, esc10_fold

MIX_SECONDS: Final = 10.0
BACKGROUND: Final = 10 ** (-50 / 20)  # RMS of the noise, -50 dB
EXCERPT: Final = 10 ** (-20 / 20)  # RMS of an excerpt before its gain, -20 dB
FADE_SECONDS: Final = 0.01


def mixtures(data: Path, folds: str, count: int, seed: int, split: str) -> list[Clip]:
    """Make `count` mixtures of ESC-10 excerpts from these folds ("12": folds 1 and 2).

    Their events are known from onset to offset. `seed` decides everything; `split` becomes the
    clips' split and the beginning of their names.
    """
    usable = [path for path in esc10_files(data) if esc10_fold(path) in [*folds]]
    if not usable:
        raise BadRequest(f"no sounds of the folds {folds!r} in {data / ESC10}")
    rng = np.random.default_rng(seed)
    return [_mixture(f"{split}{index:03d}", split, usable, rng) for index in range(count)]


@dataclass(frozen=True, slots=True)
class _Excerpt:
    """The loudest `seconds` of a file, which begin at `onset` (in seconds) of the mixture."""

    path: Path
    onset: float
    seconds: float
    gain: float


@dataclass(frozen=True, slots=True)
class _Mixture:
    """Excerpts over noise; calling it with a sample rate in Hz makes the sound [S]."""

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
    """Mix two to six excerpts of 0.5 to 2 s; excerpts of one class never overlap."""
    excerpts: list[_Excerpt] = []
    events: list[TrueEvent] = []
    for path in rng.choice(np.array(files, dtype=object), rng.integers(2, 7), replace=False):
        seconds = round(float(rng.uniform(0.5, 2.0)), 2)
        onset = round(float(rng.uniform(0.2, MIX_SECONDS - 0.2 - seconds)), 2)
        gain = float(10 ** (rng.uniform(-6, 6) / 20))
        event = TrueEvent(onset, round(onset + seconds, 2), esc10_class(path))
        if all(event.label != other.label or _apart(event, other) for other in events):
            excerpts.append(_Excerpt(path, onset, seconds, gain))
            events.append(event)
    sound = _Mixture(tuple(excerpts), int(rng.integers(2**31)))
    return Clip(name, sound, split, events=tuple(sorted(events, key=lambda event: event.onset_s)))


def _apart(first: TrueEvent, second: TrueEvent) -> bool:
    """Whether at least half a second lies between two events."""
    return first.onset_s > second.offset_s + 0.5 or second.onset_s > first.offset_s + 0.5


def _loudest(samples: Samples, length: int) -> Samples:
    """Return the `length` samples of most energy, scaled to the RMS EXCERPT."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    length = min(length, samples.size)
    start = int(np.argmax(energy[length:] - energy[:-length]))
    loud = samples[start : start + length]
    rms = float(np.sqrt(np.mean(np.square(loud, dtype=np.float64))))
    scaled: Samples = loud * np.float32(EXCERPT / max(rms, 1e-9))
    return scaled


def _faded(samples: Samples, length: int) -> Samples:
    """Fade samples [S] in and out, over `length` samples each."""
    ramp = np.minimum(1, (np.arange(samples.size, dtype=np.float32) + 1) / max(1, length))
    faded: Samples = samples * ramp * ramp[::-1]
    return faded
