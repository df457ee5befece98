"""Counts how fuzzed cases ended, and keeps the files of those that ended badly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from eval.bench import roads
from eval.bench.crashes import Ending
from eval.bench.report import TableRow

KEPT_OF_A_REASON: Final = 3  # files
_SHOWN: Final = 30  # reasons in the table


@dataclass(slots=True)
class Tally:
    """How the cases of one road ended; files of bad ones are written into the folder `keep`."""

    road: str
    inputs: roads.FuzzInputs
    keep: Path
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, ending: Ending) -> None:
        """Count an ending, and keep the case's file if the ending is bad."""
        self.outcomes[ending.outcome] += 1
        if ending.outcome not in roads.BAD:
            return
        reason = (ending.outcome, ending.reason)
        self.reasons[reason] += 1
        if self.reasons[reason] <= KEPT_OF_A_REASON:
            suffix, data = self._bytes(ending.number)
            self.keep.mkdir(parents=True, exist_ok=True)
            name = f"{self.road}-{ending.outcome.lower().replace(' ', '-')}-{ending.number}"
            (self.keep / f"{name}{suffix}").write_bytes(data)

    def row(self) -> TableRow:
        """Return the table's row: how often each outcome occurred."""
        total = self.outcomes.total()
        counts = {name: self.outcomes[name] for name in (*roads.FINE, *roads.BAD)}
        pace = total / max(self.seconds, 1e-9)
        return {"road": self.road, "cases": total, **counts, "cases/s": pace}

    def faults(self) -> list[TableRow]:
        """Return a row for each reason why cases ended badly, the most frequent first."""
        return [
            {"road": self.road, "outcome": outcome, "cases": count, "reason": reason}
            for (outcome, reason), count in self.reasons.most_common(_SHOWN)
        ]

    def _bytes(self, number: int) -> tuple[str, bytes]:
        """Make the suffix and the bytes of a case again."""
        if self.road == "checkpoints":
            return roads.checkpoint(self.inputs.seeds, number)
        seeds = [path.read_bytes() for path in self.inputs.seeds]
        if self.road == "http":
            return ".http", roads.random_request(self.inputs.port, seeds, number)
        return ".audio", roads.audio(seeds, number)
