"""Reads your own data as the clips of a HEAR task: class folders, or audio and a CSV.

    FOLDER/CLASS/*                      files are divided into folds, the same each time
    FOLDER/{train,valid,test}/CLASS/*   files have these splits
    table.csv                           columns: file, label(s), fold or split; for events also
                                        onset and offset

Files may have every container and codec that `embedder.audio.decode` decodes.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from embedder.defaults import AUDIO_SUFFIXES
from embedder.errors import BadRequest
from eval.data.annotations import TrueEvent
from eval.data.clips import Clip, file_sound
from eval.hear.plan import TaskPlan
from eval.hear.tasks import TRAIN_VALID_TEST

FOLDS: Final = 5
EVENT_SCORES: Final = ("event_onset_200ms_fms", "segment_1s_er")
# Column names that are understood, by meaning.
COLUMNS: Final = {
    "file": ("file", "filename", "path", "audio", "wav"),
    "label": ("label", "labels", "class", "category", "event_label"),
    "split": ("split", "fold", "set"),
    "onset": ("onset", "start", "onset_s"),
    "offset": ("offset", "end", "offset_s"),
}


def class_folders(folder: Path, folds: int = FOLDS) -> list[Clip]:
    """Read CLASS/file, or SPLIT/CLASS/file if the folders are train, valid and test.

    Raises BadRequest if the folder holds neither.
    """
    children = {entry.name for entry in _folders(folder)}
    if children == set(TRAIN_VALID_TEST):
        return [
            Clip(_slug(path, folder), file_sound(path), split, (label.name,))
            for split in TRAIN_VALID_TEST
            for label in _folders(folder / split)
            for path in _audio(label)
        ]
    if folds < 3:
        raise BadRequest(f"{folds} folds; HEAR trains, validates and tests: it needs at least 3")
    clips = [
        Clip(_slug(path, folder), file_sound(path), f"fold{index % folds:02d}", (label.name,))
        for label in _folders(folder)
        for index, path in enumerate(_audio(label))
    ]
    if not clips:
        raise BadRequest(f"{folder} holds no class folders with audio")
    return clips


def table(path: Path, separator: str = ";") -> list[Clip]:
    """Read a CSV that has one row for each file, or one row for each event.

    Columns: file (relative to the CSV), label (several joined by `separator`), and fold or
    split; for events also onset and offset, in seconds. COLUMNS lists the names that these may
    have. If a file has several rows, they are its events, or its labels.

    Raises
    ------
    BadRequest : a column or a value is missing; the message names it.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = _columns(path, reader.fieldnames or ())
        rows = [{key: (row[name] or "").strip() for key, name in names.items()} for row in reader]
    grouped: dict[str, list[dict[str, str]]] = defaultdict(list)
    for number, row in enumerate(rows, start=2):
        if not row["file"] or not row["split"]:
            raise BadRequest(f"{path}, line {number}: file or split is empty")
        grouped[row["file"]].append(row)
    return [_clip(path, name, its_rows, separator) for name, its_rows in grouped.items()]


def plan(name: str, clips: list[Clip], seconds: float | None = None) -> TaskPlan:
    """Return the task that these clips make.

    With events it is an event task; else a scene task, multiclass if each clip has one label.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise BadRequest(f"{name!r} is no name for a task; use letters, digits, '.', '_' and '-'")
    if any(clip.events for clip in clips):
        return TaskPlan(name, clips, "event", "multilabel", EVENT_SCORES, seconds)
    if all(len(clip.labels) == 1 for clip in clips):
        return TaskPlan(name, clips, "scene", "multiclass", ("top1_acc", "mAP"), seconds)
    return TaskPlan(name, clips, "scene", "multilabel", ("mAP", "aucroc"), seconds)


def _clip(path: Path, name: str, rows: list[dict[str, str]], separator: str) -> Clip:
    """Return the clip that all rows with this file name describe."""
    if len({row["split"] for row in rows}) > 1:
        raise BadRequest(f"{path}: {name} is in several splits")
    split = rows[0]["split"]
    split = f"fold{int(split):02d}" if split.isdigit() else split
    sound, slug = file_sound(path.parent / name), _slug(Path(name), Path())
    if "onset" in rows[0]:
        try:
            events = [
                TrueEvent(float(row["onset"]), float(row["offset"]), row["label"])
                for row in rows
                if row["label"]  # a row without a label stands for a file without events
            ]
        except ValueError as error:
            raise BadRequest(f"{path}: {name} has an onset or offset that is no number") from error
        return Clip(slug, sound, split, events=tuple(events))
    labels = [label.strip() for row in rows for label in row["label"].split(separator)]
    return Clip(slug, sound, split, tuple(dict.fromkeys(filter(None, labels))))


def _columns(path: Path, header: Iterable[str]) -> dict[str, str]:
    """Return {meaning: name in the table}, as in COLUMNS."""
    lower = {name.strip().lower(): name for name in header}
    columns = {
        meaning: lower[name]
        for meaning, names in COLUMNS.items()
        for name in reversed(names)  # if there are several, the first name counts
        if name in lower
    }
    missing = [meaning for meaning in ("file", "label", "split") if meaning not in columns]
    if missing:
        choices = "; ".join(" or ".join(COLUMNS[meaning]) for meaning in missing)
        raise BadRequest(f"{path} lacks columns: {choices}")
    if ("onset" in columns) != ("offset" in columns):
        raise BadRequest(f"{path} has only one of onset and offset; events need both")
    return columns


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadRequest(f"{folder} is no folder")
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


def _audio(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)


def _slug(path: Path, root: Path) -> str:
    """Turn a path below `root` into a file name that still tells it: "dog/1.wav" -> "dog_1"."""
    return re.sub(r"[^\w.-]+", "_", path.relative_to(root).with_suffix("").as_posix())
