"""Low and high tones to learn from, and short training loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from embedder.testing import write_wav
from eval.data.labelled import Dataset, Example
from eval.training.trainer import Schedule, TrainConfig

RATE = 32_000


def config(steps: int, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"evaluate_every": 10, "checkpoint_every": 10}
    return TrainConfig(Schedule(steps, 1e-2), **settings | changes)


def tones(folder: Path, per_class: int = 6) -> Dataset:
    """Low and high tones of half a second, two folds."""
    examples = []
    rng = np.random.default_rng(0)
    for number in range(2 * per_class):
        label, base = (("low", 200.0), ("high", 4000.0))[number % 2]
        t = np.arange(RATE // 2) / RATE
        wave = 0.3 * np.sin(2 * np.pi * base * rng.uniform(0.8, 1.25) * t)
        path = write_wav(folder / f"{number}.wav", wave + 0.01 * rng.standard_normal(len(t)), RATE)
        examples.append(Example(path, frozenset({label}), "ab"[number % 4 // 2]))
    return Dataset(("high", "low"), tuple(examples))
