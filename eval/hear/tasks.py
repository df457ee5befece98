"""Folders of HEAR tasks: their layout, and resampling them to a model's rate.

TASK/task_metadata.json        what is predicted, how clips are split, how it is scored
TASK/labelvocabulary.csv       idx,label
TASK/SPLIT.json                {file: [label, ...]}, or {file: [{label, start, end}, ...]} in ms
TASK/RATE/SPLIT/*.wav          mono, 16 bit
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from embedder.audio.decode import load_audio
from embedder.cli.report import counted
from embedder.errors import BadRequest
from embedder.files import atomic
from eval.data.clips import in_parallel, write_wav

METADATA: Final = "task_metadata.json"
VOCABULARY: Final = "labelvocabulary.csv"
ORIGINAL_RATE: Final = 48_000  # Hz; HEAR's tasks are distributed, and new ones written, at it
TRAIN_VALID_TEST: Final = ("train", "valid", "test")

Advance: TypeAlias = Callable[[], None]


def no_news() -> None:
    """Do nothing: the `advance` of work whose progress is not shown."""


@dataclass(frozen=True, slots=True)
class HearTask:
    """A task's folder, and the content of its metadata file."""

    path: Path
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> HearTask:
        """Read the task in this folder; BadRequest if there is none."""
        try:
            return cls(path, json.loads((path / METADATA).read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise BadRequest(f"{path} is no HEAR task: {METADATA} cannot be read") from error

    @property
    def name(self) -> str:
        """The folder's name, which stands in the tables."""
        return self.path.name

    @property
    def splits(self) -> list[str]:
        """The names of the folds, or train, valid and test."""
        return list(self.metadata["splits"])

    def files(self, split: str) -> list[str]:
        """Return the names of a split's WAV files."""
        return list(json.loads((self.path / f"{split}.json").read_text("utf-8")))

    def rates(self) -> list[int]:
        """Return the sample rates in Hz at which no WAV file is missing, ascending."""
        rates = (int(entry.name) for entry in self.path.iterdir() if entry.name.isdigit())
        return sorted(rate for rate in rates if not self.missing(rate))

    def missing(self, rate: int) -> list[tuple[str, str]]:
        """Return (split, file) of each WAV file that is missing at this rate."""
        return [
            (split, name)
            for split in self.splits
            for name in self.files(split)
            if not (self.path / str(rate) / split / name).is_file()
        ]

    def fingerprint(self) -> str:
        """Return a hash of all files of the task but its audio."""
        digest = hashlib.sha256()
        for name in (METADATA, VOCABULARY, *(f"{split}.json" for split in self.splits)):
            digest.update((self.path / name).read_bytes())
        return digest.hexdigest()


def resample(task: HearTask, rate: int, workers: int = 2, advance: Advance = no_news) -> int:
    """Resample a task to `rate` in Hz, from the highest rate at which it is complete.

    `advance` is called after each file.

    Returns
    -------
    int : how many files were written; 0 if the task was complete at this rate before.
    """
    missing = task.missing(rate)
    if not missing:
        return 0
    complete = [other for other in task.rates() if other != rate]
    if not complete:
        raise BadRequest(f"{task.path} is complete at no sample rate; fetch or build it again")
    source, target = task.path / str(complete[-1]), task.path / str(rate)
    for split in task.splits:
        (target / split).mkdir(parents=True, exist_ok=True)

    def convert(file: tuple[str, str]) -> None:
        split, name = file
        with atomic(target / split / name) as temporary:
            write_wav(temporary, load_audio(source / split / name, rate), rate)
        advance()

    in_parallel(convert, missing, workers)
    left = len(task.missing(rate))
    if left:
        raise BadRequest(
            f"{target} lacks {counted(left, 'file')} after resampling; is the disk full?"
        )
    return len(missing)
