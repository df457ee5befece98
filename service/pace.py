"""How long work takes, learnt from recent work, and when its turn has come."""

from __future__ import annotations

from typing import Final

PATIENCE: Final = 20.0
"""The turn of a piece of work comes after this many times the time that it takes.

Short work thus overtakes long work, but no work waits for ever. Work of one size keeps its order.
"""
_SMOOTHING: Final = 0.2


class Pace:
    """The seconds that a unit of work takes, by size in powers of two.

    A sample in a short window costs more than in a long one, for example.
    """

    def __init__(self) -> None:
        self._seconds_per_unit: dict[int, float] = {}

    def note(self, size: int, amount: int, seconds: float) -> None:
        """Learn how many seconds an amount of work of this size took."""
        key, measured = size.bit_length(), seconds / max(1, amount)
        old = self._seconds_per_unit.get(key, measured)
        self._seconds_per_unit[key] = old + _SMOOTHING * (measured - old)

    def seconds(self, size: int, amount: int) -> float:
        """Estimate how long work will take, from the nearest known size; 0 if none is known."""
        if not self._seconds_per_unit:
            return 0.0
        nearest = min(self._seconds_per_unit, key=lambda key: abs(key - size.bit_length()))
        return amount * self._seconds_per_unit[nearest]

    def due(self, since: float, size: int, amount: int) -> float:
        """Return when the turn of work that waits since then has come; the earliest goes first."""
        return since + PATIENCE * self.seconds(size, amount)
