"""From what a caller names to what a model is made of: weights, labels, a probe, a device."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from embedder import checkpoints, probe
from embedder.errors import BadRequest, WeightsMismatch, WeightsNotFound
from embedder.zoo import MODELS, ModelSpec, lookup

DESCRIBED = ".safetensors"  # files that say which model they are


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What a name stands for. `weights_sha256` is the hash of all files that it was read from."""

    name: str
    spec: ModelSpec
    state: Mapping[str, Tensor]
    weights_sha256: str
    labels: tuple[str, ...] | None = None
    probe: probe.Probe | None = None


def find(named: str | os.PathLike[str], weights: str | os.PathLike[str] | None) -> ModelParts:
    """The checkpoint of a row of the zoo, or of a file that describes itself.

    `AudioEmbedder.load` says what may be named.

    Raises
    ------
    UnknownModel, WeightsError : there is no such model or file, or it is another's.
    """
    name = os.fspath(named)
    if name in MODELS or not _means_a_file(named):
        checkpoint = checkpoints.load(lookup(name), weights)
    else:
        path = _described(Path(name).expanduser())
        if head := probe.read(path):
            return _with_probe(find(head.source(path), weights), head, path)
        if weights is not None:
            raise BadRequest(f"{str(path)!r} has its own weights; leave out {os.fspath(weights)!r}")
        checkpoint = checkpoints.read_described(path)
        name = path.stem
    spec = checkpoint.spec or lookup(name)
    return ModelParts(name, spec, checkpoint.state, checkpoint.sha256, checkpoint.labels)


def _with_probe(parts: ModelParts, head: probe.Probe, path: Path) -> ModelParts:
    """A model with the labels of a probe from `path`, which was made on it."""
    head.check_weights(parts.weights_sha256, path)
    both = parts.weights_sha256 + hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256(both.encode()).hexdigest()
    return replace(parts, name=path.stem, weights_sha256=digest, labels=head.labels, probe=head)


def device_of(name: str | torch.device) -> torch.device:
    """The device to compute on; "auto" is CUDA where there is a card."""
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
    if path.suffix.lower() != DESCRIBED:
        raise WeightsMismatch(
            f"{str(path)!r} does not say which model it is; load it as the weights of a model, "
            f"load('mn10_as', weights={str(path)!r})"
        )
    return path
