"""From what a caller names to what a model is made of: weights, labels, a device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from embedder import checkpoints
from embedder import probe as probe_head
from embedder.checkpoints import Checkpoint
from embedder.errors import BadRequest, WeightsMismatch, WeightsNotFound
from embedder.zoo import MODELS, ModelSpec, lookup

DESCRIBED = ".safetensors"  # files that say which model they are


@dataclass(frozen=True, slots=True)
class Parts:
    """What a name stands for. `probe` lies at `probe_path`, where there is one."""

    name: str
    spec: ModelSpec
    checkpoint: Checkpoint
    probe: probe_head.Probe | None = None
    probe_path: Path = Path()


def find(named: str | os.PathLike[str], weights: str | os.PathLike[str] | None) -> Parts:
    """The checkpoint of a row of the zoo, or of a file that describes itself; see `load`.

    Raises
    ------
    UnknownModel, WeightsError : there is no such model or file, or it is another's.
    """
    name = os.fspath(named)
    if name in MODELS or not _means_a_file(named):
        spec = lookup(name)
        checkpoint = checkpoints.load(spec, weights)
        return Parts(name, checkpoint.spec or spec, checkpoint)
    path = _described(Path(name).expanduser())
    if probe := probe_head.read(path):
        underneath = find(probe.source(path), weights)
        return Parts(underneath.name, underneath.spec, underneath.checkpoint, probe, path)
    checkpoint = checkpoints.read_described(path)
    return Parts(path.stem, checkpoint.spec or lookup(path.stem), checkpoint)


def device_of(name: str | torch.device) -> torch.device:
    """Where to compute; "auto" is CUDA where there is a card."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadRequest(f"no device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadRequest(f"device {name!r} needs a CUDA card and there is none; choose cpu")
    return device


def _means_a_file(named: str | os.PathLike[str]) -> bool:
    path = Path(named)
    suffixes = (DESCRIBED, ".pt", ".pth", ".onnx")
    return (
        not isinstance(named, str)
        or path.suffix.lower() in suffixes
        or len(path.parts) > 1
        or path.exists()
    )


def _described(path: Path) -> Path:
    if path.is_dir():
        raise WeightsNotFound(f"{str(path)!r} is a folder; name a {DESCRIBED} file in it")
    if not path.exists():
        raise WeightsNotFound(f"no checkpoint {str(path)!r}; name an existing {DESCRIBED} file")
    if path.suffix != DESCRIBED:
        raise WeightsMismatch(
            f"{str(path)!r} does not say which model it is; load it as the weights of a model, "
            f"load('mn10_as', weights={str(path)!r})"
        )
    return path
