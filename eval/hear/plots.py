"""The paper's figures 1 and 2 (arXiv 2303.01879), drawn from any report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from embedder.extras import require
from eval.hear import facts
from eval.hear.report import OWN, ModelScores, ScoreReport, group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The single models of the leaderboard that the paper compares with.
COMPARED: Final = (
    *("CP-JKU PaSST base", "wav2vec2", "Logitech AI SERAB BYOL-S", "OpenL3"),
    *("RedRice EfficientNet-B2", "CVSSP PANNS"),
)


def distributions(report: ScoreReport, path: Path) -> Path:
    """Draw Fig. 1: normalised scores of each model by group of tasks, best median first.

    Own tasks have no challenge score to be normalised by; their scores are drawn as they are.
    """
    figure, axes = _figure(1, 9.0)
    rows = [*report.rows, *(row for row in report.published if row.label in COMPARED)]
    rows.sort(key=lambda row: median(_values(row) or [0.0]), reverse=True)
    groups = [
        name for name in (*facts.GROUPS, OWN) if any(group(task) == name for task in report.tasks)
    ]
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        filled = [(number, _values(row, name)) for number, name in enumerate(groups)]
        filled = [(number, values) for number, values in filled if values]
        positions = [number + (index - (len(rows) - 1) / 2) * width for number, _ in filled]
        boxes = axes.boxplot(
            [values for _, values in filled],
            positions=positions,
            widths=width * 0.8,
            patch_artist=True,
            medianprops={"color": "black"},
        )
        for box in boxes["boxes"]:
            box.set_facecolor(f"C{index % 10}")
        axes.plot([], [], "s", color=f"C{index % 10}", label=row.label)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("normalised score")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return _saved(figure, path)


def complexity(report: ScoreReport, path: Path) -> Path:
    """Draw Fig. 2: mean normalised score against the number of parameters.

    If no task is HEAR's, it is the mean of the scores as they are. Models of the leaderboard are
    drawn as lines, because it does not list their parameters.
    """
    figure, axes = _figure(1, 6.5)
    for row in report.rows:
        if row.parameters and row.scores:
            point = (row.parameters / 1e6, row.quality())
            axes.semilogx(*point, "o", color="C0")
            axes.annotate(row.label, point, textcoords="offset points", xytext=(6, -3))
    compared = [row for row in report.published if row.label in COMPARED]
    for index, row in enumerate(compared):
        axes.axhline(row.quality(), color=f"C{index + 1}", ls=":", label=row.label)
    axes.set_xlabel("parameters (millions)")
    normalised = any(task in facts.TASKS for task in report.tasks)
    axes.set_ylabel("mean normalised score" if normalised else "mean score")
    axes.grid(alpha=0.3, which="both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return _saved(figure, path)


def _values(row: ModelScores, only: str | None = None) -> list[float]:
    """Return normalised scores, and those of own tasks as they are, of one group or of all."""
    normalised = row.normalised()
    return [
        normalised.get(task, score.value)
        for task, score in row.scores.items()
        if only in (None, group(task))
    ]


def _figure(columns: int, width: float) -> tuple[Any, Axes]:
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot(1, columns, 1)


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return path


def draw(report: ScoreReport, folder: Path, name: str) -> Sequence[Path]:
    """Draw both figures as NAME-distributions.png and NAME-complexity.png; return their paths."""
    return [
        distributions(report, folder / f"{name}-distributions.png"),
        complexity(report, folder / f"{name}-complexity.png"),
    ]
