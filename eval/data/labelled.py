"""Labelled sound: which file has which labels and belongs to which fold.

A layout is a function from a folder to a Dataset. LAYOUTS lists the layouts that are known:
class folders, a CSV, and some published data sets just as they are distributed.
Axes: N examples, C labels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedder.audio.decode import load_audio
from embedder.defaults import AUDIO_SUFFIXES
from embedder.errors import BadRequest
from eval.data.esc10_fsdd import esc10_class, esc10_fold

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled file. Labels in `unknown` were not judged; labels in neither set are absent."""

    path: Path
    labels: frozenset[str]
    fold: str = ""
    unknown: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Files and the labels they may have; `multi_label` if a file may have several at once."""

    labels: tuple[str, ...]
    examples: tuple[Example, ...]
    multi_label: bool = False

    @property
    def folds(self) -> tuple[str, ...]:
        """The names of the folds (or partitions, such as "train"), sorted."""
        return tuple(sorted({example.fold for example in self.examples}))

    def split(self, test: Iterable[str]) -> tuple[Dataset, Dataset]:
        """Return (train, test): `test` names the folds of the second; all others are the first."""
        test_folds = set(test)
        if unknown := test_folds - set(self.folds):
            raise BadRequest(f"no folds {sorted(unknown)}; choose from {', '.join(self.folds)}")
        parts = [
            replace(
                self, examples=tuple(e for e in self.examples if (e.fold in test_folds) is tested)
            )
            for tested in (False, True)
        ]
        if not all(part.examples for part in parts):
            raise BadRequest(f"test folds {sorted(test_folds)} leave nothing to train or test on")
        return parts[0], parts[1]

    def targets(self) -> NDArray[np.float32]:
        """Return 1 for labels that hold, 0 for others, NaN for unknown ones: float32 [N, C]."""
        index = {label: i for i, label in enumerate(self.labels)}
        targets = np.zeros((len(self.examples), len(index)), np.float32)
        for row, example in zip(targets, self.examples, strict=True):
            row[[index[label] for label in example.unknown]] = np.nan
            row[[index[label] for label in example.labels]] = 1.0
        return targets

    def waves(self, sample_rate: int, cache_bytes: int = 2 << 30) -> Waves:
        """Return the files' sound, each decoded when it is asked for."""
        return Waves([example.path for example in self.examples], sample_rate, cache_bytes)


class Waves:
    """Decoded files by index: mono float32 [S] at `sample_rate` in Hz.

    Files stay in memory once they are decoded, until `cache_bytes` are used up.
    """

    def __init__(self, paths: list[Path], sample_rate: int, cache_bytes: int = 2 << 30) -> None:
        self.paths, self.sample_rate, self._room = paths, sample_rate, cache_bytes
        self._kept: dict[int, Samples] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Samples:
        if index in self._kept:
            return self._kept[index]
        wave = load_audio(self.paths[index], self.sample_rate)
        if wave.nbytes <= self._room:
            self._room -= wave.nbytes
            self._kept[index] = wave
        return wave


def labelled_folder(root: Path) -> Dataset:
    """Read class folders (CLASS/SOUND); file names as ESC-10's, "FOLD-ID-TAKE.ogg", give folds."""
    examples = []
    for path in sorted(root.glob("*/*")):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            label = esc10_class(path).replace("_", " ")
            examples.append(Example(path, frozenset({label}), esc10_fold(path)))
    return _dataset(examples, f"{root}/CLASS/SOUND")


def labelled_csv(root: Path) -> Dataset:
    """Read a CSV with a header: file (relative to the CSV), labels (separated by ";"), fold.

    The column `fold` may be missing.
    """
    table = root if root.is_file() else root / "labels.csv"
    examples = [
        Example(
            table.parent / row["file"],
            frozenset(label.strip() for label in row["labels"].split(";") if label.strip()),
            row.get("fold") or "",
        )
        for row in _rows(table)
    ]
    several = any(len(example.labels) != 1 for example in examples)
    return _dataset(examples, f"{table} (columns file, labels[, fold])", several)


def esc50(root: Path) -> Dataset:
    """Read ESC-50: meta/esc50.csv and audio/, five folds (Piczak 2015)."""
    return _esc(root)


def esc10(root: Path) -> Dataset:
    """Read ESC-10: its rows of ESC-50, or the ten class folders that it was first published as."""
    if (root / "meta" / "esc50.csv").is_file():
        return _esc(root, "esc10")
    return labelled_folder(root)


def openmic(root: Path) -> Dataset:
    """Read OpenMIC-2018: openmic-2018.npz, class-map.json, partitions/ and audio/KEY[:3]/KEY.ogg.

    Each clip was judged for only a few of the twenty instruments; the others are unknown.
    """
    # The published file holds object arrays (its keys are strings), and reading these can run
    # code: never read a file that you do not trust.
    with np.load(root / "openmic-2018.npz", allow_pickle=True) as arrays:
        truth, mask, keys = arrays["Y_true"], arrays["Y_mask"], arrays["sample_key"]
    labels = _class_map(root / "class-map.json")
    fold = {
        line.strip(): part
        for part in ("train", "test")
        for line in (root / "partitions" / f"split01_{part}.csv").read_text().splitlines()
    }
    examples = [
        Example(
            root / "audio" / key[:3] / f"{key}.ogg",
            _named(labels, (row >= 0.5) & judged),
            fold[key],
            _named(labels, ~judged),
        )
        for key, row, judged in zip(map(str, keys), truth, mask.astype(bool), strict=True)
        if key in fold
    ]
    return Dataset(labels, tuple(examples), multi_label=True)


def fsd50k(root: Path) -> Dataset:
    """Read FSD50K: FSD50K.ground_truth/{vocabulary,dev,eval}.csv; folds train, val and eval."""
    truth = root / "FSD50K.ground_truth"
    with (truth / "vocabulary.csv").open(newline="") as file:
        labels = tuple(row[1] for row in csv.reader(file))
    examples = [
        Example(
            root / f"FSD50K.{part}_audio" / f"{row['fname']}.wav",
            frozenset(row["labels"].split(",")),
            row.get("split") or part,
        )
        for part in ("dev", "eval")
        for row in _rows(truth / f"{part}.csv")
    ]
    return Dataset(labels, tuple(examples), multi_label=True)


def tau2020(root: Path) -> Dataset:
    """Read TAU Urban Acoustic Scenes 2020 Mobile: evaluation_setup/fold1_{train,evaluate}.csv."""
    examples = [
        Example(root / row["filename"], frozenset({row["scene_label"]}), part)
        for part in ("train", "evaluate")
        for row in _rows(root / "evaluation_setup" / f"fold1_{part}.csv", "\t")
    ]
    return _dataset(examples, f"{root}/evaluation_setup")


LAYOUTS: Final[Mapping[str, Callable[[Path], Dataset]]] = {
    "folder": labelled_folder,
    "csv": labelled_csv,
    "esc50": esc50,
    "esc10": esc10,
    "openmic": openmic,
    "fsd50k": fsd50k,
    "tau2020": tau2020,
}


def open_dataset(root: Path, layout: str = "auto") -> Dataset:
    """Read a dataset of this layout; "auto" takes a CSV where there is one, else class folders."""
    if layout == "auto":
        layout = "csv" if root.is_file() or (root / "labels.csv").is_file() else "folder"
    if layout not in LAYOUTS:
        raise BadRequest(f"no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    try:
        return LAYOUTS[layout](root)
    except (OSError, KeyError) as error:
        raise BadRequest(f"{root} is not laid out as {layout}: {error!r}") from error


def _esc(root: Path, only: str = "") -> Dataset:
    """Read the rows of ESC-50's table, or those whose column `only` says True."""
    examples = [
        Example(
            root / "audio" / row["filename"],
            frozenset({row["category"].replace("_", " ")}),
            row["fold"],
        )
        for row in _rows(root / "meta" / "esc50.csv")
        if not only or row[only] == "True"
    ]
    return _dataset(examples, f"{root}/meta/esc50.csv")


def _dataset(examples: list[Example], layout: str, multi_label: bool = False) -> Dataset:
    """Return these examples with all their labels; `layout` is for the error if there are none."""
    if not examples:
        raise BadRequest(f"no labelled sound at {layout}")
    labels = tuple(sorted(set[str]().union(*(example.labels for example in examples))))
    return Dataset(labels, tuple(examples), multi_label)


def _rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def _class_map(path: Path) -> tuple[str, ...]:
    """Return the labels of a JSON file {label: column}, in the order of their columns."""
    index: dict[str, int] = json.loads(path.read_text())
    return tuple(sorted(index, key=index.__getitem__))


def _named(labels: tuple[str, ...], chosen: NDArray[Any]) -> frozenset[str]:
    return frozenset(label for label, is_chosen in zip(labels, chosen, strict=True) if is_chosen)
