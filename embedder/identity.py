"""All that decides a model's numbers: what a cache's keys and the rows of a table go by."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from embedder.zoo import ModelSpec

# Raise when a model's numbers change for the same weights and engine.
NUMERICS_VERSION: Final = 1
_random: Final[WeakKeyDictionary[Identified, str]] = WeakKeyDictionary()


class Identified(Protocol):
    """What is asked of a model; `embedder.AudioEmbedder` is one."""

    name: str
    spec: ModelSpec
    weights_sha256: str

    @property
    def engine(self) -> str:
        """What computes, as far as it decides the numbers."""


def identity(model: Identified) -> dict[str, str]:
    """All that decides the model's numbers, by what it is.

    Random weights have no hash: a model of them is like no other.
    """
    weights = model.weights_sha256
    if not weights:
        weights = _random.setdefault(model, f"random {secrets.token_hex(16)}")
    return {
        "model": model.name,
        "weights_sha256": weights,
        "front_end": json.dumps(asdict(model.spec.mel), sort_keys=True),
        "network": repr(model.spec.network),
        "engine": model.engine,
        "numerics": str(NUMERICS_VERSION),
    }
