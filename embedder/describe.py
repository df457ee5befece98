"""A model on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from textwrap import shorten
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import torch

_WIDTH: Final = 84  # characters of a value


class Describable(Protocol):
    """What `described` reads of a model; `embedder.AudioEmbedder` has it."""

    name: str
    labels: tuple[str, ...]
    taps: tuple[str, ...]
    weights_sha256: str

    @property
    def tap_sizes(self) -> Mapping[str, int]: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def scene_embedding_size(self) -> int: ...
    @property
    def timestamp_embedding_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def runtime(self) -> str: ...
    def parameters(self) -> Iterable[torch.Tensor]: ...


def described(model: Describable) -> str:
    """Return name, rate, sizes, labels, weights and engine of a model, a line each."""
    taps = ", ".join(f"{tap} {model.tap_sizes[tap]}" for tap in model.taps)
    values = sum(value.numel() for value in model.parameters())
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
