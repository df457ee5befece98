"""What a request may cost: it is added up here before the network computes anything.

Bytes are counted as they arrive (`service.middleware`), seconds as they are decoded
(`embedder.audio.libav`). After that, the windows and the values of the answer are known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from embedder.outputs import Output
from service.errors import TooMuchWork
from service.models import WindowModel
from service.settings import Settings

_VALUE_BYTES: Final = 4  # float32
_REMEDY: Final = "use a larger hop_ms, fewer taps or a shorter clip"


@dataclass(frozen=True, slots=True)
class Cost:
    """How many windows the network computes, their seconds together, and the answer's values."""

    windows: int
    seconds: float
    values: int

    @property
    def bytes(self) -> int:
        """Memory of the answer."""
        return self.values * _VALUE_BYTES

    @classmethod
    def of(cls, output: Output, samples: int, model: WindowModel) -> Cost:
        """The cost of an output for a clip of so many samples."""
        windows = output.n_windows(samples)
        seconds = windows * output.width(samples) / output.sample_rate
        shape = output.shape(samples, model.tap_sizes, len(model.labels))
        return cls(windows, seconds, math.prod(shape))


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a request may cost."""

    windows: int
    seconds: float
    values: int

    @classmethod
    def of(cls, settings: Settings) -> Budget:
        """The limits that the settings name."""
        return cls(settings.max_windows, settings.max_windows_seconds, settings.max_values)

    def check(self, cost: Cost) -> None:
        """TooMuchWork, naming what is too large and what makes it smaller."""
        if cost.windows > self.windows or cost.seconds > self.seconds:
            raise TooMuchWork(
                f"{cost.windows:,} windows of together {cost.seconds:,.0f} s; this server computes "
                f"up to {self.windows:,} and {self.seconds:,.0f} s: {_REMEDY}"
            )
        if cost.values > self.values:
            raise TooMuchWork(
                f"the answer would have {cost.values:,} values; this server makes up to "
                f"{self.values:,}: {_REMEDY}"
            )
