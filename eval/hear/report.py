"""Reads heareval's score files and makes one table, as Markdown and JSON.

Each task is scored by its first metric, k-fold tasks by the mean over their folds. Scores of the
HEAR benchmark's tasks are also normalised by the best challenge score and averaged by group, and
rows of the leaderboard stand beside ours. The user's own tasks have no best score: theirs are
shown as they are.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from embedder.version import __version__
from eval.hear import facts
from eval.hear.environment import PACKAGES
from eval.hear.jobs import HearJob

OWN: Final = "Own"


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a model on a task; `std` is the deviation over folds, None without folds."""

    value: float
    std: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f}" if self.std is None else f"{self.value:.3f} ± {self.std:.3f}"


@dataclass(frozen=True, slots=True)
class ModelScores:
    """A row of the table: a model with its scores by task.

    HEAR's 19 tasks have the names of `facts.TASKS`; other tasks have the name of their folder.
    `seconds` are the times that embedding and predicting took, by task.
    """

    label: str
    scores: Mapping[str, Score]
    parameters: int | None = None
    sample_rate: int | None = None
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def normalised(self) -> dict[str, float]:
        """Return the scores of HEAR's tasks as shares of the best challenge scores."""
        return {
            task: facts.normalised(task, score.value)
            for task, score in self.scores.items()
            if task in facts.TASKS
        }

    def mean(self, group: str | None = None) -> float | None:
        """Return the mean normalised score of a group, or of all; None if it has no task."""
        values = [
            value
            for task, value in self.normalised().items()
            if group in (None, facts.TASKS[task].group)
        ]
        return fmean(values) if values else None

    def quality(self) -> float:
        """Return what rows are ordered by: the mean normalised score, or the mean of own tasks."""
        mean = self.mean()
        values = [score.value for score in self.scores.values()]
        return mean if mean is not None else fmean(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """All rows of a run, the metric of each task, and the rows of the leaderboard."""

    rows: Sequence[ModelScores]
    metrics: Mapping[str, str]
    published: Sequence[ModelScores] = ()

    @property
    def tasks(self) -> list[str]:
        """HEAR's tasks in the order of `facts.TASKS`, then own tasks in the order of the run."""
        own = [task for task in self.metrics if task not in facts.TASKS]
        return [task for task in facts.TASKS if task in self.metrics] + own

    def markdown(self, title: str = "HEAR scores") -> str:
        """Return the tables, and the versions that they were made with."""
        parts = [f"# {title}", self._scores()]
        if any(task in facts.TASKS for task in self.metrics):
            parts += ["## Normalised by the best score of HEAR 2021, mean of tasks", self._means()]
        parts.append("\n".join(f"- {key}: {value}" for key, value in provenance().items()))
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """Return everything, for programs."""
        rows = [
            {**asdict(row), "normalised": row.normalised(), "mean_normalised": row.mean()}
            for row in self.rows
        ]
        tasks = {task: {"metric": self.metrics[task], "group": group(task)} for task in self.tasks}
        content = {"tasks": tasks, "rows": rows, "published": [asdict(r) for r in self.published]}
        return json.dumps({**content, "made_by": provenance()}, indent=1)

    def _scores(self) -> str:
        header = ["model", *(f"{title(task)} ({self.metrics[task]})" for task in self.tasks)]
        lines = [
            [row.label, *(_cell(row.scores.get(task)) for task in self.tasks)] for row in self.rows
        ]
        for row in self.published:
            cells = (_cell(row.scores.get(task)) for task in self.tasks)
            lines.append([f"*{row.label}* (leaderboard)", *cells])
        return _table(header, lines)

    def _means(self) -> str:
        groups = [name for name in facts.GROUPS if any(group(task) == name for task in self.tasks)]
        lines = [
            [row.label, *(_percent(row.mean(name)) for name in groups), _percent(row.mean())]
            for row in sorted([*self.rows, *self.published], key=ModelScores.quality, reverse=True)
        ]
        return _table(["model", *groups, "all"], lines)


def build(jobs: Iterable[HearJob]) -> ScoreReport:
    """Collect the scores of those jobs that are finished; every model has a row."""
    metrics: dict[str, str] = {}
    folder_scores: dict[str, dict[str, list[Score]]] = {}  # by model and task
    seconds: dict[str, dict[str, Mapping[str, float]]] = {}
    models = {}
    for job in jobs:
        label = job.model.candidate.label
        models[label] = job.model
        folder_scores.setdefault(label, {})
        scores = job.scores()
        if scores is None:
            continue
        task = facts.known(job.task.name) or job.task.name
        metrics[task] = str(job.task.metadata["evaluation"][0])
        folder_scores[label].setdefault(task, []).append(score(scores, metrics[task]))
        seconds.setdefault(label, {})[job.task.name] = job.seconds()
    rows = [
        ModelScores(
            label,
            {task: _task_score(scores) for task, scores in tasks.items()},
            models[label].parameters,
            models[label].sample_rate,
            seconds.get(label, {}),
        )
        for label, tasks in folder_scores.items()
    ]
    return ScoreReport(rows, metrics, _published(metrics))


def score(results: Mapping[str, Any], metric: str) -> Score:
    """Return the metric from the content of heareval's `test.predicted-scores.json`.

    If no event was predicted, the F-measure is NaN there. It counts as 0 here; heareval does the
    same when it compares hyper-parameters.
    """
    if "aggregated_scores" in results:
        folds = results["aggregated_scores"]
        return Score(_or_zero(folds[f"test_{metric}_mean"]), _or_zero(folds[f"test_{metric}_std"]))
    return Score(_or_zero(results["test"][f"test_{metric}"]))


def group(task: str) -> str:
    """Return a task's group: Speech, Music or General; Own if the task is not HEAR's."""
    return facts.TASKS[task].group if task in facts.TASKS else OWN


def title(task: str) -> str:
    """Return a task's name in the tables."""
    return facts.TASKS[task].title if task in facts.TASKS else task


def provenance() -> dict[str, str]:
    """Return the date and the versions that a table is made with."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kit": ", ".join(package.replace("==", " ") for package in PACKAGES),
        "audio-embedder": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def save(report: ScoreReport, folder: Path, name: str, heading: str) -> list[Path]:
    """Write NAME.md and NAME.json; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.md", folder / f"{name}.json"]
    for path, text in zip(paths, (report.markdown(heading), report.json()), strict=True):
        path.write_text(text, "utf-8")
    return paths


def _task_score(scores: Sequence[Score]) -> Score:
    """Return the score of a task: the mean of its folders' (only Beehive has several)."""
    return scores[0] if len(scores) == 1 else Score(fmean(score.value for score in scores))


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _published(metrics: Mapping[str, str]) -> list[ModelScores]:
    rows = [
        ModelScores(
            entry.model,
            {task: Score(value) for task, value in entry.scores.items() if task in metrics},
        )
        for entry in facts.leaderboard()
    ]
    return [row for row in rows if row.scores]


def _cell(value: Score | None) -> str:
    return "–" if value is None else str(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))
