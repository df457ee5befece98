"""What a client sent, what is asked of it, and what is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedder.outputs import Output
from service.models import Served

CacheState = Literal["hit", "miss", "bypass"]


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes that a client sent, their key in the cache, and what is asked of which model."""

    data: bytes
    key: str
    served: Served
    output: Output


@dataclass(frozen=True, slots=True)
class Answer:
    """The values of an output, of the shape that it promises for this many samples."""

    served: Served
    output: Output
    values: NDArray[np.float32]
    samples: int
    cache: CacheState
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.samples / self.output.sample_rate

    @property
    def ms(self) -> NDArray[np.float64]:
        """Milliseconds of the centres of the rows of `values`."""
        return self.output.centres_ms(self.samples)
