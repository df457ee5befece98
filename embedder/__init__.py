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
    from embedder.errors import EmbedderError
    from embedder.model import AudioEmbedder
    from embedder.outputs import Timestamps
    from embedder.zoo import MODELS

# Imported on first use, so that `import embedder` does not wait for torch.
_HOMES: Final = {
    "AudioEmbedder": "embedder.model",
    "EmbedderError": "embedder.errors",
    "MODELS": "embedder.zoo",
    "Timestamps": "embedder.outputs",
    "load_audio": "embedder.audio.decode",
    "stream_audio": "embedder.audio.decode",
}

__all__ = [
    "MODELS",
    "AudioEmbedder",
    "EmbedderError",
    "Timestamps",
    "__version__",
    "load_audio",
    "stream_audio",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
