"""The reference implementations' outputs, and the weights they were computed with."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.shared import SHARED

GOLDEN = SHARED / "golden"
CLIPS = ("music", "metro", "dog")


@cache
def arrays(name: str) -> dict[str, NDArray[np.float32]]:
    """Every array of golden/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def clip(name: str, sample_rate: int = 32_000) -> Tensor:
    """One of CLIPS as float32 [S] in [-1, 1]."""
    pcm = arrays(f"audio_{sample_rate // 1000}k")[f"pcm_{name}"]
    return torch.from_numpy(pcm.astype(np.float32) / 32_768)


def seeded_state(architecture: str) -> dict[str, Tensor]:
    """The rebuilt weights of one architecture of state_dicts.json."""
    spec = json.loads((GOLDEN / "state_dicts.json").read_text())[architecture]
    state = _seeded_weights().seeded_state_dict(spec)
    return {name: torch.from_numpy(array) for name, array in state.items()}


def relative_error(ours: Tensor, golden: NDArray[np.float32]) -> float:
    """||ours - golden|| / ||golden||, in float64."""
    reference = golden.astype(np.float64)
    assert tuple(ours.shape) == reference.shape
    difference = np.linalg.norm(ours.double().numpy() - reference)
    return float(difference / np.linalg.norm(reference))


@cache
def _seeded_weights() -> ModuleType:
    location = importlib.util.spec_from_file_location(
        "seeded_weights", GOLDEN / "seeded_weights.py"
    )
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module
