"""Choose the format of an answer from a request's Accept header (RFC 9110, section 12.5.1).

No library does it well enough. python-mimeparse takes a malformed quality as 1, does not match
upper case, and needs seconds for a hostile header of 64 kB. werkzeug, itself a web framework,
refuses clients that ask for JSON with a charset. content-negotiation fails at a space after commas.
"""

from __future__ import annotations

import re
from typing import Final

from service.errors import NotAcceptable

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
NPZ: Final = "application/x-npz"
_QUALITY: Final = re.compile(r"0?\.\d+|[01](\.\d*)?")
FORMATS: Final = (JSON, NPY, NPZ)  # in the order that the server prefers


def best_format(accept: str | None) -> str:
    """Return the format that an Accept header prefers.

    Raises
    ------
    NotAcceptable : the header accepts none of our formats.
    """
    if accept in (None, "", "*/*", JSON):
        return JSON
    assert accept is not None
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    qualities = {offer: _quality(offer, ranges) for offer in FORMATS}
    best = max(FORMATS, key=qualities.__getitem__)
    if qualities[best] <= 0:
        raise NotAcceptable(f"cannot make {accept[:100]!r}; accept {', '.join(FORMATS)}")
    return best


def _range(part: str) -> tuple[str, float]:
    """A media range and its quality; a malformed quality is 0."""
    name, *parameters = (piece.strip() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            quality = float(value) if _QUALITY.fullmatch(value.strip()) else 0.0
    return name.lower(), quality


def _quality(offer: str, ranges: list[tuple[str, float]]) -> float:
    """The quality of the most specific range that matches a format; 0 if none does."""
    for name in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        for candidate, quality in ranges:
            if candidate == name:
                return quality
    return 0.0
