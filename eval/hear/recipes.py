"""Tasks by name, made from data sets that are free to use: `eval.data.esc10_fsdd` says which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from eval.data.clips import Clip, file_sound
from eval.data.esc10_fsdd import (
    FSDD,
    MIX_FOLDS,
    esc10_class,
    esc10_files,
    esc10_fold,
    spoken_digits,
)
from eval.data.mixtures import MIX_SECONDS, mixtures
from eval.hear.plan import TaskPlan
from eval.hear.sources import EVENT_SCORES

MIX_SIZES: Final = MappingProxyType({"train": 80, "valid": 30, "test": 40})


def esc10(data: Path) -> TaskPlan:
    """Environmental sounds, 10 classes, 5 s, by the folds as published."""
    clips = [
        Clip(path.stem, file_sound(path), f"fold{int(esc10_fold(path)):02d}", (esc10_class(path),))
        for path in esc10_files(data)
    ]
    return TaskPlan("esc10", clips, "scene", "multiclass", ("top1_acc", "mAP"), 5.0)


def digits(data: Path) -> TaskPlan:
    """Spoken digits, 1 s, split as FSDD says: takes 0-4 test, 5-9 validation, the rest training."""
    clips = [
        Clip(spoken.path.stem, file_sound(spoken.path), spoken.split, (spoken.digit,))
        for spoken in spoken_digits(data / FSDD)
    ]
    return TaskPlan("digits", clips, "scene", "multiclass", ("top1_acc",), 1.0)


def events(data: Path) -> TaskPlan:
    """Events to be detected in 10 s mixtures of ESC-10 excerpts over faint noise."""
    clips = []
    for number, (split, size) in enumerate(MIX_SIZES.items()):
        clips += mixtures(data, MIX_FOLDS[split], size, number, split)
    return TaskPlan("esc10_events", clips, "event", "multilabel", EVENT_SCORES, MIX_SECONDS)


RECIPES: Final[Mapping[str, Callable[[Path], TaskPlan]]] = MappingProxyType(
    {"esc10": esc10, "digits": digits, "esc10_events": events}
)
