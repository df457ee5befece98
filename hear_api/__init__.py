"""The HEAR 2021 module API over every model of this project.

    python -m heareval.embeddings.runner hear_api --model-options '{"name": "mn10_as"}'

The contract: https://hearbenchmark.com/hear-api.html. Options of `load_model` choose model,
taps, windows and hops, where other projects need one module a variant. Only torch and the
model core are imported here: this runs inside other people's processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from embedder.defaults import (
    DEFAULT_MODEL,
    SCENE_HOP_MS,
    SCENE_WINDOW_MS,
    TIMESTAMP_HOP_MS,
    TIMESTAMP_WINDOW_MS,
)
from embedder.model import AudioEmbedder


@dataclass(frozen=True, slots=True)
class HearWindows:
    """Windows and hops of both embeddings, in milliseconds."""

    scene_window_ms: float = SCENE_WINDOW_MS
    scene_hop_ms: float = SCENE_HOP_MS
    timestamp_window_ms: float = TIMESTAMP_WINDOW_MS
    timestamp_hop_ms: float = TIMESTAMP_HOP_MS


DEFAULT_WINDOWS: Final = HearWindows()


class HearModel(nn.Module):
    """What HEAR wants to see: a module with `sample_rate` (Hz) and two sizes, plain ints."""

    def __init__(self, embedder: AudioEmbedder, windows: HearWindows = DEFAULT_WINDOWS) -> None:
        super().__init__()
        self.embedder = embedder
        self.windows = windows
        self.sample_rate: int = embedder.sample_rate
        self.scene_embedding_size: int = embedder.scene_embedding_size
        self.timestamp_embedding_size: int = embedder.timestamp_embedding_size


def load_model(
    model_file_path: str = "",
    *,
    name: str = DEFAULT_MODEL,
    taps: Sequence[str] | None = None,
    device: str = "auto",
    runtime: str = "auto",
    scene_window_ms: float = SCENE_WINDOW_MS,
    scene_hop_ms: float = SCENE_HOP_MS,
    timestamp_window_ms: float = TIMESTAMP_WINDOW_MS,
    timestamp_hop_ms: float = TIMESTAMP_HOP_MS,
) -> HearModel:
    """A model of the zoo, with its published weights or those in `model_file_path`.

    Raises
    ------
    EmbedderError : an option names nothing there is, or the weights cannot be had.
    """
    embedder = AudioEmbedder.load(name, model_file_path or None, taps, device, runtime)
    windows = HearWindows(scene_window_ms, scene_hop_ms, timestamp_window_ms, timestamp_hop_ms)
    return HearModel(embedder, windows)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Audio [n_sounds, n_samples] in [-1, 1] -> float32 [n_sounds, scene_embedding_size]."""
    windows = model.windows
    return model.embedder.scene(
        audio, window_ms=windows.scene_window_ms, hop_ms=windows.scene_hop_ms
    )


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Audio [n_sounds, n_samples] -> embeddings and their centres.

    Returns
    -------
    float32 [n_sounds, n_timestamps, timestamp_embedding_size] and float32
    [n_sounds, n_timestamps], milliseconds from 0 in constant steps, never beyond the end.
    """
    windows = model.windows
    vectors, ms = model.embedder.timestamps(
        audio, window_ms=windows.timestamp_window_ms, hop_ms=windows.timestamp_hop_ms
    )
    return vectors, ms.float()


__all__ = ["get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
