"""Tasks by name, made from data sets that are free to use.

Their folder (`--data`) holds `esc10/CLASS/FOLD-ID-TAKE.ogg` (github.com/karolpiczak/ESC-10) and
`fsdd/DIGIT_SPEAKER_TAKE.wav` (Free Spoken Digit Dataset, its `recordings`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import embedder
from eval.data.clips import Clip, file_sound
from eval.data.mixtures import MIX_SECONDS, data_files, esc10_class, esc10_files, mixtures
from eval.hear.plan import TaskPlan
from eval.hear.sources import EVENT_SCORES

DATA: Final = Path(embedder.__file__).resolve().parents[2] / "shared" / "audio"

MIX_SIZES: Final = MappingProxyType({"train": 80, "valid": 30, "test": 40})
# Folds of ESC-10 whose sounds a split may use: no recording is in two splits.
MIX_FOLDS: Final = MappingProxyType({"train": "12", "valid": "3", "test": "4"})


def esc10(data: Path) -> TaskPlan:
    """Environmental sounds, 10 classes, 5 s, by the folds as published."""
    clips = [
        Clip(path.stem, file_sound(path), f"fold{int(path.stem[0]):02d}", (esc10_class(path),))
        for path in esc10_files(data)
    ]
    return TaskPlan("esc10", clips, "scene", "multiclass", ("top1_acc", "mAP"), 5.0)


def digits(data: Path) -> TaskPlan:
    """Spoken digits, 1 s, split as FSDD says: takes 0-4 test, 5-9 validation, the rest training."""
    clips = []
    for path in data_files(data / "fsdd", "*_*_*.wav"):
        digit, _, take = path.stem.split("_")
        split = "test" if int(take) < 5 else "valid" if int(take) < 10 else "train"
        clips.append(Clip(path.stem, file_sound(path), split, (digit,)))
    return TaskPlan("digits", clips, "scene", "multiclass", ("top1_acc",), 1.0)


def events(data: Path) -> TaskPlan:
    """Events to be found in 10 s mixtures of ESC-10 excerpts over faint noise."""
    clips = []
    for number, (split, size) in enumerate(MIX_SIZES.items()):
        clips += mixtures(data, MIX_FOLDS[split], size, number, split)
    return TaskPlan("esc10_events", clips, "event", "multilabel", EVENT_SCORES, MIX_SECONDS)


RECIPES: Final[Mapping[str, Callable[[Path], TaskPlan]]] = MappingProxyType(
    {"esc10": esc10, "digits": digits, "esc10_events": events}
)
