"""How long work takes, learnt from what was done lately; and whose turn it is."""

from __future__ import annotations

from typing import Final

PATIENCE: Final = 20.0
"""A piece of work waits for its turn in proportion to what it takes: so many times as long.

Short ones thus overtake long ones, but not for ever; pieces of one size come in order.
"""
_SMOOTHING: Final = 0.2


class Pace:
    """Seconds for an amount of work. Kept by size (powers of two): short windows cost more."""

    def __init__(self) -> None:
        self._seconds_per_unit: dict[int, float] = {}

    def note(self, size: int, amount: int, seconds: float) -> None:
        """So much work of this size took so long."""
        key, measured = size.bit_length(), seconds / max(1, amount)
        old = self._seconds_per_unit.get(key, measured)
        self._seconds_per_unit[key] = old + _SMOOTHING * (measured - old)

    def seconds(self, size: int, amount: int) -> float:
        """About how long that will take, by the nearest size that was seen; 0 before any was."""
        if not self._seconds_per_unit:
            return 0.0
        nearest = min(self._seconds_per_unit, key=lambda key: abs(key - size.bit_length()))
        return amount * self._seconds_per_unit[nearest]

    def due(self, since: float, size: int, amount: int) -> float:
        """When the turn of what waits since then has come; the earliest goes first."""
        return since + PATIENCE * self.seconds(size, amount)
