"""What all commands that train share: they carry out a run and report how it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from embedder.errors import BadRequest
from embedder.extras import require

if TYPE_CHECKING:
    from eval.training.trainer import Metrics, Trainer


def run(trainer: Trainer) -> None:
    """Train to the end and draw the curve."""
    drawing = True
    try:
        require("matplotlib")
    except BadRequest as error:
        drawing = False
        say(f"no curve will be drawn: {error}")
    if trainer.run() and drawing:  # only in the process that logs
        from eval.training.curve import draw

        draw(trainer.rows, trainer.folder / "curve.png")


def report(row: Metrics) -> None:
    """Print a row of the log."""
    say("  ".join(f"{key} {value:.4g}" for key, value in row.items()))


def say(line: str) -> None:
    """Print a line on stderr; results go to files."""
    Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(line)


def chosen_device(device: str) -> str:
    """A device for torch: "auto" is CUDA where there is one."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
