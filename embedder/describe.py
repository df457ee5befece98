"""A model on one screen."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from embedder.model import AudioEmbedder

_WIDTH: Final = 84  # of a value


def described(model: AudioEmbedder) -> str:
    """Name, rate, sizes, labels, weights and engine of a model, a line each."""
    taps = ", ".join(f"{tap} {model.tap_sizes[tap]}" for tap in model.taps)
    values = sum(value.numel() for value in model.backbone.parameters())
    weights = f"SHA-256 {model.weights_sha256}" if model.weights_sha256 else "random"
    rows = {
        "audio": f"mono at {model.sample_rate} Hz",
        "scene": f"{model.scene_embedding_size} values a clip: {taps}",
        "timestamps": f"{model.timestamp_embedding_size} values each",
        "labels": f"{len(model.labels)}: {'; '.join(model.labels)}",
        "parameters": f"{values:,}",
        "weights": weights,
        "runs on": f"{model.device}, {model.runtime}",
    }
    lines = [
        f"  {name:<10}  {shorten(row, _WIDTH, placeholder=' ...')}" for name, row in rows.items()
    ]
    return "\n".join([f"AudioEmbedder {model.name}", *lines])
