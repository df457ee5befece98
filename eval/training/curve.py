"""Draw a run's log. Needs matplotlib, which the extra `train` installs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

Metrics = dict[str, float]


def draw(rows: Sequence[Metrics], path: Path) -> None:
    """Write a picture: above, the training loss by step; below, the scores on held-out material."""
    steps = [row["step"] for row in rows]
    scores = [key for key in rows[-1] if key.startswith(("error_", "accuracy", "mean_", "tag_map"))]
    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(9, 6), layout="constrained"
    )
    above.plot(steps, [row["loss"] for row in rows])
    above.set(ylabel="training loss", yscale="log")
    colours = pyplot.get_cmap("tab20")
    for number, key in enumerate(scores):
        values = [row.get(key, float("nan")) for row in rows]
        below.plot(steps, values, label=key.replace("_", " "), color=colours(number % 20))
    below.set(xlabel="step", ylabel="held out", ylim=(0, 1.5 if len(scores) > 1 else 1))
    if scores:
        below.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
