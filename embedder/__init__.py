"""General-purpose audio embeddings and tags from efficient CNNs.

>>> from embedder import AudioEmbedder
>>> model = AudioEmbedder.load("sprout04")
>>> model.scene("dog.wav")  # or bytes, an array with its sample_rate, a list of clips
>>> model.top_tags("dog.wav", 5)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from embedder.version import __version__

if TYPE_CHECKING:
    from embedder.audio.decode import load_audio, stream_audio
    from embedder.bulk.files import embed_files
    from embedder.errors import (
        AudioTooLarge,
        BadAudio,
        BadRequest,
        DownloadFailed,
        EmbedderError,
        UnknownModel,
        UnknownTap,
        UnsupportedAudio,
        WeightsError,
        WeightsMismatch,
        WeightsNotFound,
    )
    from embedder.events.finder import Event
    from embedder.model import AudioEmbedder
    from embedder.outputs import Timestamps
    from embedder.waveforms import AudioBlocks
    from embedder.zoo import MODELS

# Imported on first use, so that `import embedder` does not wait for torch.
_HOMES: Final = {
    "AudioBlocks": "embedder.waveforms",
    "AudioEmbedder": "embedder.model",
    "AudioTooLarge": "embedder.errors",
    "BadAudio": "embedder.errors",
    "BadRequest": "embedder.errors",
    "DownloadFailed": "embedder.errors",
    "EmbedderError": "embedder.errors",
    "Event": "embedder.events.finder",
    "MODELS": "embedder.zoo",
    "Timestamps": "embedder.outputs",
    "UnknownModel": "embedder.errors",
    "UnknownTap": "embedder.errors",
    "UnsupportedAudio": "embedder.errors",
    "WeightsError": "embedder.errors",
    "WeightsMismatch": "embedder.errors",
    "WeightsNotFound": "embedder.errors",
    "embed_files": "embedder.bulk.files",
    "load_audio": "embedder.audio.decode",
    "stream_audio": "embedder.audio.decode",
}

__all__ = [
    "MODELS",
    "AudioBlocks",
    "AudioEmbedder",
    "AudioTooLarge",
    "BadAudio",
    "BadRequest",
    "DownloadFailed",
    "EmbedderError",
    "Event",
    "Timestamps",
    "UnknownModel",
    "UnknownTap",
    "UnsupportedAudio",
    "WeightsError",
    "WeightsMismatch",
    "WeightsNotFound",
    "__version__",
    "embed_files",
    "load_audio",
    "stream_audio",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from embedder.extras import advice

        if (missing := advice(error.name or "")) is None:
            raise
        raise ImportError(missing) from error
