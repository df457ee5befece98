"""The HEAR 2021 module API over every model of this project.

    python -m heareval.embeddings.runner hear_api --model-options '{"name": "mn10_as"}'

The contract: https://hearbenchmark.com/hear-api.html. Options of `load_model` choose model,
taps, windows and hops, where other projects have a module for each variant. Only torch and the
model core are imported here, since this runs inside other people's processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from embedder.defaults import (
    DEFAULT_MODEL,
    SCENE_HOP_MS,
    SCENE_WINDOW_MS,
    TIMESTAMP_HOP_MS,
    TIMESTAMP_WINDOW_MS,
)
from embedder.model import AudioEmbedder
from embedder.outputs import Output
from embedder.streams import output_of


class HearModel(nn.Module):
    """What HEAR asks for: a module with `sample_rate` (Hz) and two sizes, plain ints.

    `scene` and `timestamps` are the outputs that the two functions below give.
    """

    def __init__(
        self,
        embedder: AudioEmbedder,
        scene: Output | None = None,
        timestamps: Output | None = None,
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.scene = scene or output_of(embedder, "embedding", "scene")
        self.timestamps = timestamps or output_of(embedder, "embedding", "timestamps")
        self.sample_rate: int = embedder.sample_rate
        self.scene_embedding_size: int = embedder.scene_embedding_size
        self.timestamp_embedding_size: int = embedder.timestamp_embedding_size

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the numbers of both functions, as plain JSON."""
        outputs = {"scene": self.scene.key(), "timestamps": self.timestamps.key()}
        return {**self.embedder.identity, **outputs}


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
    EmbedderError : an option names what does not exist, or the weights cannot be had.
    """
    embedder = AudioEmbedder.load(name, model_file_path or None, taps, device, runtime)
    return HearModel(
        embedder,
        output_of(embedder, "embedding", "scene", scene_window_ms, scene_hop_ms),
        output_of(embedder, "embedding", "timestamps", timestamp_window_ms, timestamp_hop_ms),
    )


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Audio [n_sounds, n_samples] in [-1, 1] -> float32 [n_sounds, scene_embedding_size]."""
    return model.embedder.answer(audio, model.scene)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Audio [n_sounds, n_samples] -> embeddings and their centres.

    Returns
    -------
    float32 [n_sounds, n_timestamps, timestamp_embedding_size] and float32
    [n_sounds, n_timestamps], milliseconds from 0 in constant steps, never beyond the end.
    """
    vectors, ms = model.embedder.rows(audio, model.timestamps)
    return vectors, ms.float()


__all__ = ["get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
