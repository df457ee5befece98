"""All that decides a model's numbers, in one place.

Together with the key of an `Output` this decides the values of any audio. The server's cache, the
tables of bulk jobs, the records of HEAR runs and the networks that engines keep on disk go by it.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from embedder.zoo import MelConfig, ModelSpec

# Raise when a model's numbers change for the same weights and engine.
NUMERICS_VERSION: Final = 1
_random: Final[WeakKeyDictionary[Identified, str]] = WeakKeyDictionary()


class Identified(Protocol):
    """What is asked of a model; `embedder.AudioEmbedder` is such a model."""

    name: str
    spec: ModelSpec
    weights_sha256: str

    @property
    def engine(self) -> str:
        """The name of what runs the network, as far as it decides the numbers."""


def identity(model: Identified) -> dict[str, str]:
    """All that decides the model's numbers, by name.

    Random weights have no hash: a model with random weights equals no other model.
    """
    weights = model.weights_sha256
    if not weights:
        weights = _random.setdefault(model, f"random {secrets.token_hex(16)}")
    network = repr(model.spec.network)
    return {"model": model.name, **numbers(weights, model.spec.mel, network, model.engine)}


def numbers(weights: str, front_end: MelConfig, network: str, engine: str) -> dict[str, str]:
    """The identity of a network without a name; `weights` is a hash of all of them."""
    return {
        "weights_sha256": weights,
        "front_end": json.dumps(asdict(front_end), sort_keys=True),
        "network": network,
        "engine": engine,
        "numerics": str(NUMERICS_VERSION),
    }
