"""Every error a caller can cause, each with its remedy in the message.

EmbedderError
├── BadAudio            the bytes or samples cannot be embedded
│   ├── UnsupportedAudio    no audio in a container and codec we accept
│   └── AudioTooLarge       more seconds, samples or bytes than this door allows
├── BadRequest          an option or argument has no meaning here
│   ├── UnknownModel
│   └── UnknownTap
└── WeightsError        a checkpoint cannot be had or used
    ├── WeightsNotFound
    ├── WeightsMismatch     hash, names or shapes differ from what the model needs
    └── DownloadFailed
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

_SHOWN: Final = 6  # choices that a message names


class EmbedderError(Exception):
    """Base of every error a caller can cause. `code` is stable and machine-readable."""

    code = "embedder_error"


class BadAudio(EmbedderError):
    """The audio itself is at fault: empty, silent of samples, NaN, broken."""

    code = "bad_audio"


class UnsupportedAudio(BadAudio):
    """No audio stream in a container and codec that we accept."""

    code = "unsupported_audio"


class AudioTooLarge(BadAudio):
    """Longer or larger than this door allows; the message names the limit."""

    code = "audio_too_large"


class BadRequest(EmbedderError):
    """An argument or option has no meaning here."""

    code = "bad_request"


class UnknownModel(BadRequest):
    """No such row in the zoo."""

    code = "unknown_model"

    def __init__(self, name: str, choices: Iterable[str], listed: str = "embedder models") -> None:
        """`listed` is what lists the choices, of which only the nearest ones are named."""
        every = list(choices)
        typed = name.lower()
        near = [one for one in every if one.startswith(typed) or typed.startswith(one)]
        near += get_close_matches(typed, every, _SHOWN, cutoff=0.5)
        named = list(dict.fromkeys([*near, *every]))[:_SHOWN]
        rest = f", ... (`{listed}` lists all {len(every)})" if len(every) > len(named) else ""
        super().__init__(f"no model {name!r}; choose one of {', '.join(named)}{rest}")


class UnknownTap(BadRequest):
    """No such feature in this model."""

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
