"""From heareval's score files to one table, as Markdown and JSON.

Each task is scored by its first metric; k-fold tasks by the mean over folds. Tasks of the HEAR
benchmark are also normalised by the best challenge score and averaged by group, and rows of the
leaderboard stand beside ours. Own tasks have no such best: they are shown as they are.
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
    """One model on one task; `std` is over folds, None where there are none."""

    value: float
    std: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f}" if self.std is None else f"{self.value:.3f} ± {self.std:.3f}"


@dataclass(frozen=True, slots=True)
class ModelScores:
    """A model with its scores by task: a task's own name, or ours of one of HEAR's 19."""

    label: str
    scores: Mapping[str, Score]
    parameters: int | None = None
    sample_rate: int | None = None
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def normalised(self) -> dict[str, float]:
        """Shares of the best challenge scores, of the tasks that HEAR knows."""
        return {
            task: facts.normalised(task, score.value)
            for task, score in self.scores.items()
            if task in facts.TASKS
        }

    def mean(self, group: str | None = None) -> float | None:
        """Mean normalised score, of one group or of all; None without a task of it."""
        values = [v for t, v in self.normalised().items() if group in (None, facts.TASKS[t].group)]
        return fmean(values) if values else None

    def quality(self) -> float:
        """What rows are ordered by: mean normalised score, or the mean score of own tasks."""
        mean = self.mean()
        values = [score.value for score in self.scores.values()]
        return mean if mean is not None else fmean(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """All rows of a run; `metrics` by task."""

    rows: Sequence[ModelScores]
    metrics: Mapping[str, str]
    published: Sequence[ModelScores] = ()

    @property
    def tasks(self) -> list[str]:
        """HEAR's tasks by group, then own ones, as they came."""
        own = [task for task in self.metrics if task not in facts.TASKS]
        return [task for task in facts.TASKS if task in self.metrics] + own

    def markdown(self, title: str = "HEAR scores") -> str:
        """The tables, with what they were made by."""
        parts = [f"# {title}", self._scores()]
        if any(task in facts.TASKS for task in self.metrics):
            parts += ["## Normalised by the best score of HEAR 2021, mean of tasks", self._means()]
        parts.append("\n".join(f"- {key}: {value}" for key, value in provenance().items()))
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """Everything, for programs."""
        rows = [
            {**asdict(row), "normalised": row.normalised(), "mean_normalised": row.mean()}
            for row in self.rows
        ]
        tasks = {task: {"metric": self.metrics[task], "group": group(task)} for task in self.tasks}
        content = {"tasks": tasks, "rows": rows, "published": [asdict(r) for r in self.published]}
        return json.dumps({**content, "made_by": provenance()}, indent=1)

    def _scores(self) -> str:
        header = ["model", *(f"{title(task)} ({self.metrics[task]})" for task in self.tasks)]
        lines = [[row.label, *(_cell(row.scores.get(t)) for t in self.tasks)] for row in self.rows]
        for row in self.published:
            cells = (_cell(row.scores.get(task)) for task in self.tasks)
            lines.append([f"*{row.label}* (leaderboard)", *cells])
        return _table(header, lines)

    def _means(self) -> str:
        groups = [g for g in facts.GROUPS if any(group(task) == g for task in self.tasks)]
        lines = [
            [row.label, *(_percent(row.mean(each)) for each in groups), _percent(row.mean())]
            for row in sorted([*self.rows, *self.published], key=ModelScores.quality, reverse=True)
        ]
        return _table(["model", *groups, "all"], lines)


def build(jobs: Iterable[HearJob]) -> ScoreReport:
    """The table of what these jobs have finished."""
    metrics: dict[str, str] = {}
    found: dict[str, dict[str, list[Score]]] = {}
    seconds: dict[str, dict[str, Mapping[str, float]]] = {}
    models = {}
    for job in jobs:
        label = job.model.candidate.label
        models[label] = job.model
        found.setdefault(label, {})
        scores = job.scores()
        if scores is None:
            continue
        task = facts.known(job.task.name) or job.task.name
        metrics[task] = str(job.task.metadata["evaluation"][0])
        found[label].setdefault(task, []).append(score(scores, metrics[task]))
        seconds.setdefault(label, {})[job.task.name] = job.seconds()
    rows = [
        ModelScores(
            label,
            {task: _together(parts) for task, parts in tasks.items()},
            models[label].parameters,
            models[label].sample_rate,
            seconds.get(label, {}),
        )
        for label, tasks in found.items()
    ]
    return ScoreReport(rows, metrics, _published(metrics))


def score(results: Mapping[str, Any], metric: str) -> Score:
    """The metric in heareval's `test.predicted-scores.json`.

    An F-measure without a single predicted event is NaN there; it counts as 0, as heareval does
    when it compares hyper-parameters.
    """
    if "aggregated_scores" in results:
        folds = results["aggregated_scores"]
        return Score(_or_zero(folds[f"test_{metric}_mean"]), _or_zero(folds[f"test_{metric}_std"]))
    return Score(_or_zero(results["test"][f"test_{metric}"]))


def group(task: str) -> str:
    """Speech, Music or General; Own for tasks that are not HEAR's."""
    return facts.TASKS[task].group if task in facts.TASKS else OWN


def title(task: str) -> str:
    """As the tables call it."""
    return facts.TASKS[task].title if task in facts.TASKS else task


def provenance() -> dict[str, str]:
    """When, and by which versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kit": ", ".join(package.replace("==", " ") for package in PACKAGES),
        "audio-embedder": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def save(report: ScoreReport, folder: Path, name: str, heading: str) -> list[Path]:
    """Write NAME.md and NAME.json; returns both."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.md", folder / f"{name}.json"]
    for path, text in zip(paths, (report.markdown(heading), report.json()), strict=True):
        path.write_text(text, "utf-8")
    return paths


def _together(parts: Sequence[Score]) -> Score:
    """A task of several folders is their mean (Beehive)."""
    return parts[0] if len(parts) == 1 else Score(fmean(part.value for part in parts))


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _published(metrics: Mapping[str, str]) -> list[ModelScores]:
    rows = [
        ModelScores(entry.model, {t: Score(v) for t, v in entry.scores.items() if t in metrics})
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
