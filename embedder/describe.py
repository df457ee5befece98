"""A model on one screen."""

from __future__ import annotations

from textwrap import shorten
from typing import Final

from embedder.streams import Streams

_WIDTH: Final = 84  # characters of a value


def described(model: Streams, weights_sha256: str, parameters: int, runs_on: str) -> str:
    """Name, rate, sizes, labels, weights and engine of a model, each on a line of its own."""
    taps = ", ".join(f"{tap} {model.tap_sizes[tap]}" for tap in model.taps)
    size = sum(model.tap_sizes[tap] for tap in model.taps)
    rows = {
        "audio": f"mono at {model.sample_rate} Hz",
        "scene": f"{size} values a clip: {taps}",
        "timestamps": f"{size} values each",
        "labels": f"{len(model.labels)}: {'; '.join(model.labels)}",
        "parameters": f"{parameters:,}",
        "weights": f"SHA-256 {weights_sha256}" if weights_sha256 else "random",
        "runs on": runs_on,
    }
    lines = [
        f"  {name:<10}  {shorten(row, _WIDTH, placeholder=' ...')}" for name, row in rows.items()
    ]
    return "\n".join([f"AudioEmbedder {model.name}", *lines])
