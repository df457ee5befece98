"""A probe: a small classifier on a model's features, whose labels take the place of the tags.

`embedder train probe` makes one; `AudioEmbedder.load` takes its file like a model's.

Axes: N examples, D joined features, C labels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from embedder.described import TAPS, texts
from embedder.errors import WeightsMismatch, WeightsNotFound
from embedder.files import atomic

METADATA_KEY: Final = "probe"

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Probe:
    """Standardisation and dense layers (ReLU between), in numpy: no pickle is ever loaded.

    `layers` are (weights [in, out], bias [out]); the last gives logits [N, C]. `model` is the
    one underneath, by name or path, and `weights_sha256` the hash of its weights.
    """

    labels: tuple[str, ...]
    model: str
    weights_sha256: str
    taps: tuple[str, ...]
    multi_label: bool
    mean: Vectors
    scale: Vectors
    layers: tuple[tuple[Vectors, Vectors], ...]

    def logits(self, vectors: Vectors) -> Vectors:
        """Joined features [N, D] -> [N, C]."""
        x = (vectors - self.mean) / self.scale
        for number, (weights, bias) in enumerate(self.layers):
            x = (np.maximum(x, 0) if number else x) @ weights + bias
        return x

    def probabilities(self, vectors: Vectors) -> Vectors:
        """[N, D] -> [N, C]; rows sum to 1 unless several labels may hold."""
        logits = self.logits(vectors)
        if self.multi_label:
            return np.asarray(1 / (1 + np.exp(-logits.clip(-80, 80))))
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    def tags(self, features: Tensor) -> Tensor:
        """`probabilities` of joined features [N, D], on the device of these features."""
        return torch.from_numpy(self.probabilities(features.cpu().numpy())).to(features.device)

    def save(self, path: Path) -> None:
        """Write a safetensors file that describes itself."""
        arrays = {"mean": self.mean, "scale": self.scale}
        for number, (weights, bias) in enumerate(self.layers):
            arrays |= {f"weights.{number}": weights, f"bias.{number}": bias}
        description = {
            "labels": self.labels,
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "taps": self.taps,
            "multi_label": self.multi_label,
        }
        plain = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
        with atomic(path) as temporary:
            save_file(plain, temporary, metadata={METADATA_KEY: json.dumps(description)})

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Read the file that `save` wrote."""
        if not path.is_file():
            raise WeightsNotFound(f"no probe {str(path)!r}; make one with `embedder train probe`")
        probe = read(path)
        if probe is None:
            raise WeightsMismatch(f"{path} holds no probe; `embedder train probe` makes one")
        return probe

    def check_weights(self, sha256: str, path: Path) -> None:
        """WeightsMismatch unless this probe, from `path`, was made on weights of this hash."""
        if self.weights_sha256 not in ("", sha256):
            raise WeightsMismatch(
                f"{path} was made on {self.model} with weights of SHA-256 {self.weights_sha256}, "
                f"not {sha256}; make the probe again"
            )

    def check_width(self, width: int) -> None:
        """WeightsMismatch unless the features that it takes have so many values together."""
        if width != self.mean.size:
            raise WeightsMismatch(
                f"the probe takes {self.mean.size} values, {self.model} has {width} in "
                f"{','.join(self.taps)}; make the probe again"
            )

    def source(self, path: Path) -> str:
        """The model to load underneath a probe from `path`; its checkpoint may lie beside it."""
        if not self.model.endswith(".safetensors"):
            return self.model
        checkpoint = Path(self.model)
        if not checkpoint.is_file():
            checkpoint = path.parent / checkpoint.name
        if checkpoint.is_file() and read(checkpoint) is not None:
            raise WeightsMismatch(f"{path} is a probe on a probe; make it on a model")
        return str(checkpoint)


def read(path: Path) -> Probe | None:
    """The probe in a file, or None for another file; WeightsMismatch for a damaged probe."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                return None
            return _probe(metadata[METADATA_KEY], file)
    except (OSError, SafetensorError):
        return None
    except Exception as error:  # hostile files make parsers raise whatever there is
        raise WeightsMismatch(f"{path} is a damaged probe; make it again") from error


def _probe(description: str, file: Any) -> Probe:
    """The probe of a description and its arrays; any exception means that they are damaged."""
    facts = json.loads(description)
    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    count = sum(name.startswith("weights.") for name in arrays)
    labels = texts(facts["labels"], at_most=arrays[f"bias.{count - 1}"].size)
    (model,) = texts([facts["model"]], at_most=1)
    if not isinstance(facts["multi_label"], bool):
        raise TypeError("multi_label is neither true nor false")
    probe = Probe(
        labels=labels,
        model=model,
        weights_sha256=str(facts.get("weights_sha256", "")),
        taps=texts(facts["taps"], at_most=TAPS),
        multi_label=facts["multi_label"],
        mean=arrays["mean"],
        scale=arrays["scale"],
        layers=tuple((arrays[f"weights.{i}"], arrays[f"bias.{i}"]) for i in range(count)),
    )
    _check_shapes(probe)
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("not all numbers are finite, of 32 bits")
    return probe


def _check_shapes(probe: Probe) -> None:
    widths = [probe.mean.size, *(bias.size for _, bias in probe.layers)]
    shapes = [weights.shape for weights, _ in probe.layers]
    if shapes != list(pairwise(widths)) or widths[-1] != len(probe.labels) or not shapes:
        raise ValueError("layers do not fit each other")
    if probe.mean.shape != probe.scale.shape or not probe.scale.all():
        raise ValueError("mean and scale do not fit each other")
