"""A task that is to be written, and writing it in HEAR's layout (see eval.hear.tasks)."""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embedder.audio.decode import Samples
from embedder.errors import BadRequest
from eval.data.clips import Clip, in_parallel, write_wav
from eval.hear.tasks import (
    METADATA,
    ORIGINAL_RATE,
    TRAIN_VALID_TEST,
    VOCABULARY,
    Advance,
    HearTask,
    no_news,
)


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """A task that is to be written.

    Every clip is padded or trimmed to `seconds`; None keeps each as long as it is. `scores` are
    names of `heareval.score`; models are selected, and shown in the tables, by the first.
    """

    name: str
    clips: Sequence[Clip]
    kind: Literal["scene", "event"]
    prediction: Literal["multiclass", "multilabel"]
    scores: tuple[str, ...]
    seconds: float | None

    @property
    def splits(self) -> list[str]:
        """The names of the folds, sorted, or train, valid and test in this order."""
        names = {clip.split for clip in self.clips}
        return list(TRAIN_VALID_TEST) if names == set(TRAIN_VALID_TEST) else sorted(names)


def write_task(
    plan: TaskPlan,
    folder: Path,
    rate: int = ORIGINAL_RATE,
    workers: int = 2,
    advance: Advance = no_news,
) -> HearTask:
    """Write a task into `folder / plan.name`, which appears when all is done, or not at all.

    `advance` is called after each clip; `rate` is in Hz.

    Raises
    ------
    BadRequest : the task exists, or cannot be what HEAR expects.
    BadAudio : a clip cannot be decoded.
    """
    _check(plan)
    target = folder / plan.name
    if target.exists():
        raise BadRequest(f"{target} exists; delete it or choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{plan.name}.") as temporary:
        path = Path(temporary) / "task"
        for split in plan.splits:
            (path / str(rate) / split).mkdir(parents=True)
        _write_facts(plan, path)

        def write(clip: Clip) -> None:
            samples = fitted(clip.sound(rate), rate, plan.seconds)
            write_wav(path / str(rate) / clip.split / f"{clip.name}.wav", samples, rate)
            advance()

        in_parallel(write, plan.clips, workers)
        path.replace(target)
    return HearTask.read(target)


def fitted(samples: Samples, rate: int, seconds: float | None) -> Samples:
    """Trim samples [S], or pad them with silence, to exactly so many seconds."""
    if seconds is None:
        return samples
    length = round(seconds * rate)
    return np.pad(samples[:length], (0, max(0, length - samples.size)))


def _check(plan: TaskPlan) -> None:
    """Raise BadRequest if HEAR could not use the task."""
    splits = plan.splits
    if splits != list(TRAIN_VALID_TEST) and (len(splits) < 3 or set(splits) & {*TRAIN_VALID_TEST}):
        raise BadRequest(
            f"{plan.name} has the splits {', '.join(splits) or '(none)'}; "
            "HEAR needs train, valid and test, or at least 3 folds"
        )
    counts = Counter(clip.name for clip in plan.clips)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise BadRequest(f"{plan.name} has two clips named {repeated[0]!r}; names must differ")
    if plan.prediction == "multiclass":
        wrong = next((clip for clip in plan.clips if len(clip.labels) != 1), None)
        if wrong:
            raise BadRequest(
                f"{wrong.name} has {len(wrong.labels)} labels; multiclass needs one each"
            )


def _write_facts(plan: TaskPlan, path: Path) -> None:
    """Write the vocabulary, the truth of each split, and the metadata."""
    labels = {label for clip in plan.clips for label in clip.labels}
    labels |= {event.label for clip in plan.clips for event in clip.events}
    with (path / VOCABULARY).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("idx", "label"), *enumerate(sorted(labels))]
        )
    for split in plan.splits:
        truth = {f"{c.name}.wav": _truth(plan, c) for c in plan.clips if c.split == split}
        (path / f"{split}.json").write_text(json.dumps(truth, indent=1), "utf-8")
    folds = plan.splits != list(TRAIN_VALID_TEST)
    metadata = {
        "task_name": plan.name,
        "version": "1",
        "embedding_type": plan.kind,
        "prediction_type": plan.prediction,
        "split_mode": "presplit_kfold" if folds else "trainvaltest",
        "sample_duration": plan.seconds,
        "evaluation": list(plan.scores),
        "splits": plan.splits,
        **({"nfolds": len(plan.splits)} if folds else {}),
    }
    (path / METADATA).write_text(json.dumps(metadata, indent=1), "utf-8")


def _truth(plan: TaskPlan, clip: Clip) -> list[Any]:
    """Return a clip's labels, or its events with times in milliseconds."""
    if plan.kind == "scene":
        return list(clip.labels)
    return [
        {"label": event.label, "start": event.onset_s * 1000, "end": event.offset_s * 1000}
        for event in clip.events
    ]
