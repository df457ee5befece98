"""The names of AudioSet's classes in the models' order (CC BY 4.0), read from package data."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources


@cache
def audioset_labels() -> tuple[str, ...]:
    """The 527 display names; name i belongs to output i of every AudioSet head."""
    return tuple(row["display_name"] for row in csv.DictReader(_lines("audioset_527.csv")))


@cache
def strong_labels() -> tuple[str, ...]:
    """The 447 names of AudioSet Strong; name i belongs to output i of every event detector."""
    return tuple(_lines("audioset_strong_447.txt"))


def default_labels(n_classes: int) -> tuple[str, ...]:
    """The names of a head's outputs: AudioSet's if there are as many, else "class 0", ..."""
    for names in (audioset_labels(), strong_labels()):
        if n_classes == len(names):
            return names
    return tuple(f"class {i}" for i in range(n_classes))


def _lines(name: str) -> list[str]:
    return resources.files("embedder").joinpath(f"data/{name}").read_text("utf-8").splitlines()
