"""AudioSet's 527 class names in model order (CC BY 4.0), from package data."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources


@cache
def audioset_labels() -> tuple[str, ...]:
    """The 527 display names; index i names output i of every AudioSet head."""
    text = resources.files("embedder").joinpath("data/audioset_527.csv").read_text("utf-8")
    return tuple(row["display_name"] for row in csv.DictReader(text.splitlines()))


def default_labels(n_classes: int) -> tuple[str, ...]:
    """AudioSet's names for a head of their number; else "class 0", "class 1", ..."""
    names = audioset_labels()
    return names if n_classes == len(names) else tuple(f"class {i}" for i in range(n_classes))
