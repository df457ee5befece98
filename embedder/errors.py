"""Every error that a caller can cause; the message of each names the remedy.

EmbedderError
├── BadAudio            the bytes or samples cannot be embedded
│   ├── UnsupportedAudio    no audio in a container and codec that we accept
│   └── AudioTooLarge       more seconds, samples, bytes or time to decode than is allowed
├── BadRequest          an option or argument has no meaning here
│   ├── UnknownModel
│   └── UnknownTap
└── WeightsError        a checkpoint cannot be had or used
    ├── WeightsNotFound
    │   └── DownloadFailed
    └── WeightsMismatch     hash, names or shapes differ from what the model needs
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

_SHOWN: Final = 6  # choices that a message names


class EmbedderError(Exception):
    """The base of every error that a caller can cause; `code` is stable, for programs to read."""

    code = "embedder_error"


class BadAudio(EmbedderError):
    """The audio itself is at fault: it is empty or broken, or has NaN among its samples."""

    code = "bad_audio"


class UnsupportedAudio(BadAudio):
    """No audio stream in a container and codec that we accept."""

    code = "unsupported_audio"


class AudioTooLarge(BadAudio):
    """The audio is longer or larger than is allowed; the message names the limit."""

    code = "audio_too_large"


class BadRequest(EmbedderError):
    """An argument or option has no meaning here."""

    code = "bad_request"


class UnknownModel(BadRequest):
    """The zoo has no such model."""

    code = "unknown_model"

    def __init__(self, name: str, choices: Iterable[str], listed: str = "embedder models") -> None:
        """The message names the choices nearest to `name`; the command `listed` lists all."""
        every = list(choices)
        typed = name.lower()
        near = [choice for choice in every if choice.startswith(typed) or typed.startswith(choice)]
        near += get_close_matches(typed, every, _SHOWN, cutoff=0.5)
        named = list(dict.fromkeys([*near, *every]))[:_SHOWN]
        rest = f", ... (`{listed}` lists all {len(every)})" if len(every) > len(named) else ""
        super().__init__(f"no model {name!r}; choose one of {', '.join(named)}{rest}")


class UnknownTap(BadRequest):
    """The model has no such feature."""

    code = "unknown_tap"

    def __init__(self, tap: str, choices: Iterable[str]) -> None:
        super().__init__(f"no tap {tap!r}; choose from {', '.join(choices)}")


class WeightsError(EmbedderError):
    """A checkpoint cannot be had or used."""

    code = "weights_error"


class WeightsNotFound(WeightsError):
    """No checkpoint where we looked, and none could be fetched."""

    code = "weights_not_found"


class WeightsMismatch(WeightsError):
    """The file is not the checkpoint that the model needs."""

    code = "weights_mismatch"


class DownloadFailed(WeightsNotFound):
    """The published checkpoint could not be downloaded."""

    code = "download_failed"
