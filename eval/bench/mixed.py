"""Clients that send mixed requests: many lengths, models, taps, kinds and formats.

Some files were sent before (the cache has them), some are damaged, some requests are given up.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from eval.bench.material import FORMATS, RATE, clip, encoded, wav_head
from eval.bench.mutation import mutated
from eval.bench.wire import exchange, hang_up, request

SHORTEST, LONGEST = 0.05, 30.0  # seconds
_PREPARED: Final = 24  # files that are sent again and again, so that the cache has them
_SAMPLE_BYTES: Final = 2
_TAPS: Final = ("", "&taps=mel", "&taps=b5,b13", "&taps=mel,b5,b11,b13", "&taps=clf1")
_ACCEPT: Final = ("application/json", "application/json", "application/x-npy", "application/x-npz")
_PATHS: Final = (
    "/embed?kind=scene{taps}",
    "/embed?kind=scene{taps}",
    "/embed?kind=timestamps&window_ms=1000&hop_ms=500{taps}",
    "/timestamps?hop_ms=100",
    "/tags?top_k=5",
    "/tags?kind=timestamps&window_ms=2000&hop_ms=1000",
)
# Kinds of requests, and how many of a hundred are of each.
_KINDS: Final = {"fresh": 70, "cached": 15, "openai": 5, "broken": 5, "given up": 5}


class MixedSounds:
    """Makes the files that are sent: new ones, repeated ones and damaged ones."""

    def __init__(self) -> None:
        draw = random.Random(0)
        noise = (clip(0, 2 * LONGEST) * 32_767).astype("<i2")
        self._noise = noise.tobytes()
        self._files = [
            encoded(clip(number, _length(draw)), draw.choice(list(FORMATS)))
            for number in range(_PREPARED)
        ]

    def sound(self, draw: random.Random, kind: str) -> bytes:
        """Return a file for a kind of request: repeated, damaged, or else a new WAV file."""
        if kind == "cached":
            return draw.choice(self._files)
        if kind == "broken":
            return mutated(self._files, draw.getrandbits(32))
        size = round(_length(draw) * RATE) * _SAMPLE_BYTES
        first = draw.randrange(len(self._noise) - size) // _SAMPLE_BYTES * _SAMPLE_BYTES
        return wav_head(size) + self._noise[first : first + size]


@dataclass(slots=True)
class MixedLoad:
    """Clients, each of which sends its next request when the last is answered.

    `counts` are the answers by `Reply.name`; `models` are the names that the server knows.
    """

    port: int
    models: Sequence[str]
    detector: str  # a model that finds events
    seed: int = 0
    sounds: MixedSounds = field(default_factory=MixedSounds)
    counts: Counter[str] = field(default_factory=Counter)

    async def run(self, clients: int, seconds: float) -> None:
        """Let so many clients send for so many seconds."""
        deadline = time.monotonic() + seconds
        await asyncio.gather(*(self._client(number, deadline) for number in range(clients)))

    async def _client(self, number: int, deadline: float) -> None:
        draw = random.Random(f"{self.seed} {number}")
        while time.monotonic() < deadline:
            kind = draw.choices(list(_KINDS), list(_KINDS.values()))[0]
            sound = self.sounds.sound(draw, kind)
            data = self._request(draw, kind, sound)
            if kind == "given up":
                await hang_up(self.port, [data], draw.uniform(0, 0.2))
                self.counts["given up"] += 1
            else:
                self.counts[(await exchange(self.port, [data], 120)).name] += 1

    def _request(self, draw: random.Random, kind: str, sound: bytes) -> bytes:
        model = draw.choice(self.models)
        if kind == "openai":
            body = {"model": model, "input": [base64.b64encode(sound).decode()]}
            headers = {"Content-Type": "application/json"}
            return request(self.port, "/v1/embeddings", json.dumps(body).encode(), headers)
        path = draw.choice(_PATHS).format(taps=draw.choice(_TAPS)) + f"&model={model}"
        if draw.random() < 0.1:
            path = f"/events?model={self.detector}"
        return request(self.port, path, sound, {"Accept": draw.choice(_ACCEPT)})


def _length(draw: random.Random) -> float:
    """Draw a length in seconds, uniform in its logarithm."""
    return math.exp(draw.uniform(math.log(SHORTEST), math.log(LONGEST)))
