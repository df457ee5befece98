"""Tasks by name, made from data sets that are free to use.

Their folder (`--data`) holds `esc10/CLASS/FOLD-ID-TAKE.ogg` (github.com/karolpiczak/ESC-10) and
`fsdd/DIGIT_SPEAKER_TAKE.wav` (Free Spoken Digit Dataset, its `recordings`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

import embedder
from embedder.audio import Samples, load_audio
from embedder.errors import BadRequest
from eval.hear.plan import Clip, Event, Plan, file_sound
from eval.hear.sources import EVENT_SCORES

DATA: Final = Path(embedder.__file__).resolve().parents[2] / "shared" / "audio"

MIX_SECONDS: Final = 10.0
MIX_SIZES: Final = MappingProxyType({"train": 80, "valid": 30, "test": 40})
# Folds of ESC-10 whose sounds a split may use: no recording is in two splits.
MIX_FOLDS: Final = MappingProxyType({"train": "12", "valid": "3", "test": "4"})
BACKGROUND: Final = 10 ** (-50 / 20)
EXCERPT: Final = 10 ** (-20 / 20)  # RMS of an excerpt, before its gain
FADE_SECONDS: Final = 0.01


def esc10(data: Path) -> Plan:
    """Environmental sounds, 10 classes, 5 s, by the folds as published."""
    clips = [
        Clip(path.stem, file_sound(path), f"fold{int(path.stem[0]):02d}", (_class(path),))
        for path in _esc10_files(data)
    ]
    return Plan("esc10", clips, "scene", "multiclass", ("top1_acc", "mAP"), 5.0)


def digits(data: Path) -> Plan:
    """Spoken digits, 1 s, split as FSDD says: takes 0-4 test, 5-9 validation, the rest training."""
    clips = []
    for path in _found(data / "fsdd", "*_*_*.wav"):
        digit, _, take = path.stem.split("_")
        split = "test" if int(take) < 5 else "valid" if int(take) < 10 else "train"
        clips.append(Clip(path.stem, file_sound(path), split, (digit,)))
    return Plan("digits", clips, "scene", "multiclass", ("top1_acc",), 1.0)


def events(data: Path) -> Plan:
    """Events to be found in 10 s mixtures of ESC-10 excerpts over faint noise."""
    clips = []
    for number, (split, size) in enumerate(MIX_SIZES.items()):
        clips += mixtures(data, MIX_FOLDS[split], size, number, split)
    return Plan("esc10_events", clips, "event", "multilabel", EVENT_SCORES, MIX_SECONDS)


def mixtures(data: Path, folds: str, count: int, seed: int, split: str) -> list[Clip]:
    """So many mixtures of ESC-10 excerpts from these folds, with known onsets and offsets."""
    usable = [path for path in _esc10_files(data) if path.stem[0] in folds]
    if not usable:
        raise BadRequest(f"no sounds of the folds {folds!r} in {data / 'esc10'}")
    rng = np.random.default_rng(seed)
    return [_mixture(f"{split}{index:03d}", split, usable, rng) for index in range(count)]


RECIPES: Final[Mapping[str, Callable[[Path], Plan]]] = MappingProxyType(
    {"esc10": esc10, "digits": digits, "esc10_events": events}
)


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
        event = Event(_class(path), onset, round(onset + seconds, 2))
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


def _class(path: Path) -> str:
    """`001_-_Dog_bark` -> `Dog_bark`."""
    return path.parent.name.split("_-_")[-1]


def _esc10_files(data: Path) -> list[Path]:
    return _found(data / "esc10", "*/[0-9]-*.ogg")


def _found(folder: Path, pattern: str) -> list[Path]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise BadRequest(f"no {pattern} in {folder}; name the folder of the data sets with --data")
    return files
