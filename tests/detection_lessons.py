"""Tones to learn from, and small trainings of detectors on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedder.model import AudioEmbedder
from embedder.testing import write_wav
from embedder.zoo import (
    MEL_16K,
    MNConfig,
    ModelSpec,
    NetworkConfig,
)
from eval.data.annotations import TrueEvent
from eval.data.labelled import Dataset, Example
from eval.data.strong import (
    PseudoLabels,
    StrongSet,
)
from eval.training.detector import DetectorConfig, DetectorTraining, Lessons
from eval.training.detector_network import detector_of
from eval.training.trainer import Cosine, TrainConfig, Trainer

RATE = 16_000
LABELS = ("high", "low")
HERTZ = {"high": 3000.0, "low": 300.0}
SECONDS = 1.2
FRAMES = 30


def network(config: NetworkConfig, mel: Any = MEL_16K, labels: Any = None) -> AudioEmbedder:
    torch.manual_seed(0)
    return AudioEmbedder("tiny", ModelSpec(config, mel, ""), labels=labels)


def tone(label: str, seconds: float) -> Any:
    return 0.5 * np.sin(2 * np.pi * HERTZ[label] * np.arange(round(seconds * RATE)) / RATE)


def strong_set(folder: Path, count: int = 8, seed: int = 0) -> StrongSet:
    """Clips of faint noise in which a high and a low tone come and go."""
    rng = np.random.default_rng(seed)
    paths, events = [], []
    for number in range(count):
        wave = 0.003 * rng.standard_normal(round(SECONDS * RATE))
        clip_events = []
        for label in LABELS:
            onset, length = round(rng.uniform(0, 0.7), 2), round(rng.uniform(0.2, 0.5), 2)
            start = round(onset * RATE)
            sound = tone(label, length)
            wave[start : start + len(sound)] += sound
            clip_events.append(TrueEvent(onset, round(onset + length, 2), label))
        paths.append(write_wav(folder / f"clip{seed}-{number}.wav", wave, RATE))
        events.append(tuple(clip_events))
    return StrongSet(LABELS, tuple(paths), tuple(events))


def weak_set(folder: Path) -> Dataset:
    """Tones throughout; a label too many, and "low" unheard of."""
    examples = []
    for number in range(6):
        wave = tone("high", SECONDS) * (0.2 + 0.1 * number)
        path = write_wav(folder / f"weak{number}.wav", wave, RATE)
        examples.append(Example(path, frozenset({"high"})))
    return Dataset(("bird", "high"), tuple(examples), multi_label=True)


def lesson_plan(folder: Path, *, weak: bool = False, pseudo: bool = False) -> Lessons:
    lessons = Lessons(strong_set(folder), weak_set(folder) if weak else None)
    if not pseudo:
        return lessons
    stored = folder / "pseudo"
    stored.mkdir()
    (stored / "labels.txt").write_text("low\nother\nhigh\n")
    rng = np.random.default_rng(7)
    for path in folder.glob("*.wav"):
        np.save(stored / f"{path.stem}.npy", rng.random((FRAMES, 3)).astype(np.float16))
    return replace(lessons, pseudo=PseudoLabels.open(stored, LABELS))


def settings(**changes: Any) -> DetectorConfig:
    return DetectorConfig(**{"epochs": 10, "batch": 8, "seconds": SECONDS, "peak": 3e-3} | changes)


def training(lessons: Lessons, **changes: Any) -> DetectorTraining:
    start = detector_of(network(MNConfig(0.1), MEL_16K), LABELS, "tf", 16)
    return DetectorTraining(start, lessons, settings(**changes))


def trainer(task: DetectorTraining, folder: Path, steps: int) -> Trainer:
    loop = TrainConfig(Cosine(steps, task.config.peak), evaluate_every=5, checkpoint_every=5)
    return Trainer(task, folder, loop, task.optimizer)
