"""ESC-10 and the Free Spoken Digit Dataset: their files, their splits, and what is held out.

A data folder holds `esc10/CLASS/FOLD-ID-TAKE.ogg` (github.com/karolpiczak/ESC-10) and
`fsdd/DIGIT_SPEAKER_TAKE.wav` (FSDD's `recordings`).
"""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from embedder.errors import BadRequest

ESC10: Final = "esc10"
FSDD: Final = "fsdd"
DIGITS: Final = tuple("0123456789")

# FSDD's own test set is takes 0 to 4 of every speaker and digit; we validate on the next five.
TEST_TAKES: Final = range(5)
VALID_TAKES: Final = range(5, 10)
# Folds of ESC-10 whose sounds a split of mixtures may use: no recording is in two splits.
MIX_FOLDS: Final = MappingProxyType({"train": "12", "valid": "3", "test": "4"})

# What no training run of the bundled model sees.
HELD_OUT_FOLD: Final = "4"
HELD_OUT_SPEAKER: Final = "lucas"
HELD_OUT_FOLDERS: Final = ("distill/kenney", "distill/librosa")
# The same as patterns of paths in a corpus.
HELD_OUT: Final = (
    *(f"{folder}/*" for folder in HELD_OUT_FOLDERS),
    f"{ESC10}/*/{HELD_OUT_FOLD}-*",
    f"{FSDD}/*_{HELD_OUT_SPEAKER}_*",
)

_FOLD: Final = re.compile(r"(\d+)-\d+-[A-Z]")
_CLASS_NUMBER: Final = re.compile(r"^\d+[ _]-[ _]")


class Digit(NamedTuple):
    """One recording of FSDD, by what its name says."""

    path: Path
    digit: str
    speaker: str
    take: int

    @property
    def split(self) -> str:
        """The part of the data set that it belongs to: test, valid or train."""
        if self.take in TEST_TAKES:
            return "test"
        return "valid" if self.take in VALID_TAKES else "train"


def esc10_files(data: Path) -> list[Path]:
    """Every sound of ESC-10 below a data folder, in order."""
    return _files(data / ESC10, "*/[0-9]-*.ogg")


def esc10_fold(path: Path) -> str:
    """`4-123-A.ogg` -> `4`; the empty string for a name of another form."""
    match = _FOLD.match(path.name)
    return match[1] if match else ""


def esc10_class(path: Path) -> str:
    """The class of a sound: its folder `001_-_Dog_bark` or `001 - Dog bark` without the number."""
    return _CLASS_NUMBER.sub("", path.parent.name)


def spoken_digits(folder: Path) -> list[Digit]:
    """Every recording in a folder of FSDD, in order."""
    digits = []
    for path in _files(folder, "*_*_*.wav"):
        digit, speaker, take = path.stem.split("_")
        digits.append(Digit(path, digit, speaker, int(take)))
    return digits


def _files(folder: Path, pattern: str) -> list[Path]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise BadRequest(
            f"no {pattern} in {folder}; name the folder that holds {folder.name}/ (--data)"
        )
    return files
