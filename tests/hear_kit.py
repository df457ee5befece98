"""Sounds, tiny models of each family and the kit's environment, for tests of `eval.hear`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch

from embedder import AudioEmbedder
from embedder.audio.decode import Samples
from embedder.checkpoints import save
from embedder.zoo import MODELS
from eval.data.clips import write_wav
from eval.hear import environment
from eval.hear.environment import Kit, KitFailed

RATE: Final = 16_000
# The smallest model of every family that the zoo has.
SMALLEST: Final = {
    type(spec.network).__name__: name
    for name, spec in sorted(MODELS.items(), key=lambda item: -item[1].network.width)
    if spec.network.n_classes != 1000
}


def sound(label: str, seed: int, seconds: float = 0.5) -> Samples:
    """A tone, a noise or clicks, each a little different."""
    rng = np.random.default_rng(seed)
    n_samples = round(seconds * RATE)
    time = np.arange(n_samples) / RATE
    noise = rng.standard_normal(n_samples)
    made = {
        "tone": 0.3 * np.sin(2 * np.pi * rng.uniform(300, 3_000) * time) + 0.001 * noise,
        "noise": 0.2 * noise,
        "clicks": 0.001 * noise + 0.8 * (np.arange(n_samples) % 1_600 < 8),
    }[label]
    return np.asarray(made, np.float32)


def class_folders(folder: Path, clips: int) -> Path:
    """`clips` sounds of each of three classes."""
    for label in ("tone", "noise", "clicks"):
        (folder / label).mkdir(parents=True)
        for index in range(clips):
            write_wav(folder / label / f"{label}{index}.wav", sound(label, index), RATE)
    return folder


def tiny_checkpoint(name: str, folder: Path) -> Path:
    """A self-describing checkpoint of a model of the zoo, with random weights."""
    torch.manual_seed(0)
    model = AudioEmbedder.build(name)
    path = folder / f"{name}.safetensors"
    save(path, replace(MODELS[name], sha256=None), model.backbone.state_dict(), model.labels)
    return path


def installed_kit() -> Kit:
    """The kit where users have it; installed there if need be, skipped where pip has no network."""
    folder = Path(os.environ.get("EMBEDDER_HEAR_ENV") or environment.default_folder())
    kit = environment.ready(folder)
    if kit is not None:
        return kit
    try:
        return environment.create(folder)
    except KitFailed as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the HEAR kit cannot be installed here: {error}")
