"""A quick classifier: scikit-learn on frozen embeddings, saved as a model that serves its tags.

Axes: N examples, D embedding values, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from embedder.errors import BadRequest, WeightsMismatch, WeightsNotFound
from embedder.model import AudioEmbedder, Waveforms
from eval.data import Dataset, Waves

METADATA_KEY: Final = "probe"
STRENGTH: Final = 0.01  # inverse regularisation of the linear probe, on standardised values
HIDDEN: Final = 256

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Probe:
    """Standardisation and dense layers (ReLU between), in numpy: no pickle is ever loaded.

    `layers` are (weights [in, out], bias [out]); the last gives logits [N, C].
    """

    labels: tuple[str, ...]
    model: str
    taps: tuple[str, ...]
    multi_label: bool
    mean: Vectors
    scale: Vectors
    layers: tuple[tuple[Vectors, Vectors], ...]

    def logits(self, vectors: Vectors) -> Vectors:
        """Embeddings [N, D] -> [N, C]."""
        x = (vectors - self.mean) / self.scale
        for number, (weights, bias) in enumerate(self.layers):
            x = (np.maximum(x, 0) if number else x) @ weights + bias
        return x

    def probabilities(self, vectors: Vectors) -> Vectors:
        """[N, D] -> [N, C]; rows sum to 1 unless several labels may hold."""
        logits = self.logits(vectors)
        if self.multi_label:
            return np.asarray(1 / (1 + np.exp(-logits)))
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    def tags(self, embedder: AudioEmbedder, waveforms: Waveforms) -> list[dict[str, float]]:
        """Label probabilities of each clip [B, S], most likely first."""
        vectors = embedder.join(embedder.features(waveforms, self.taps), self.taps)
        ranked = []
        for row in self.probabilities(vectors.cpu().numpy()):
            order = np.argsort(-row, kind="stable")
            ranked.append({self.labels[i]: float(row[i]) for i in order})
        return ranked

    def save(self, path: Path) -> None:
        """Write a safetensors file that describes itself."""
        tensors = {"mean": self.mean, "scale": self.scale}
        for number, (weights, bias) in enumerate(self.layers):
            tensors |= {f"weights.{number}": weights, f"bias.{number}": bias}
        description = {
            "labels": self.labels,
            "model": self.model,
            "taps": self.taps,
            "multi_label": self.multi_label,
        }
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
        save_file(arrays, path, metadata={METADATA_KEY: json.dumps(description)})

    @classmethod
    def load(cls, path: Path) -> Probe:
        """What `save` wrote."""
        if not path.is_file():
            raise WeightsNotFound(f"no probe {str(path)!r}; make one with `python -m eval probe`")
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        try:
            facts = json.loads(metadata[METADATA_KEY])
            count = sum(name.startswith("weights.") for name in arrays)
            return cls(
                labels=tuple(facts["labels"]),
                model=facts["model"],
                taps=tuple(facts["taps"]),
                multi_label=facts["multi_label"],
                mean=arrays["mean"],
                scale=arrays["scale"],
                layers=tuple((arrays[f"weights.{i}"], arrays[f"bias.{i}"]) for i in range(count)),
            )
        except (KeyError, ValueError) as error:
            raise WeightsMismatch(
                f"{path} holds no probe; `python -m eval probe` makes one"
            ) from error


def fit_probe(
    vectors: Vectors,
    dataset: Dataset,
    embedder: AudioEmbedder,
    kind: str = "linear",
    seed: int = 0,
) -> Probe:
    """Train on embeddings [N, D] of a dataset's clips; unknown labels count as absent."""
    targets = np.nan_to_num(dataset.targets())
    mean, scale = vectors.mean(0), vectors.std(0) + np.float32(1e-6)
    x = (vectors - mean) / scale
    if kind == "mlp":
        layers = _mlp(x, targets, dataset.multi_label, seed)
    elif kind == "linear":
        layers = (_linear(x, targets, dataset.multi_label),)
    else:
        raise BadRequest(f"no probe {kind!r}; choose linear or mlp")
    return Probe(
        dataset.labels, embedder.name, embedder.taps, dataset.multi_label, mean, scale, layers
    )


@torch.inference_mode()
def embed(embedder: AudioEmbedder, waves: Waves, taps: Sequence[str] | None = None) -> Vectors:
    """Scene embeddings of whole clips, each alone: [N, D]."""
    chosen = tuple(taps or embedder.taps)
    rows = [
        embedder.join(embedder.features(waves[index], chosen), chosen)[0].cpu()
        for index in range(len(waves))
    ]
    return np.asarray(torch.stack(rows).numpy())


def _linear(x: Vectors, targets: Vectors, multi_label: bool) -> tuple[Vectors, Vectors]:
    from sklearn.linear_model import LogisticRegression

    def fit(truth: Any) -> Any:
        return LogisticRegression(C=STRENGTH, max_iter=1000).fit(x, truth)

    if not multi_label and targets.shape[1] > 2:
        model = fit(targets.argmax(1))
        weights = np.zeros((x.shape[1], targets.shape[1]), np.float32)
        bias = np.full(targets.shape[1], -1e3, np.float32)  # labels never seen
        weights[:, model.classes_], bias[model.classes_] = model.coef_.T, model.intercept_
        return weights, bias
    columns, biases = [], []
    for truth in targets.T >= 0.5:
        if truth.all() or not truth.any():
            columns.append(np.zeros(x.shape[1]))
            biases.append(1e3 if truth.all() else -1e3)
        else:
            model = fit(truth)
            columns.append(model.coef_[0])
            biases.append(float(model.intercept_[0]))
    return np.stack(columns, 1).astype(np.float32), np.array(biases, np.float32)


def _mlp(
    x: Vectors, targets: Vectors, multi_label: bool, seed: int
) -> tuple[tuple[Vectors, Vectors], ...]:
    from sklearn.neural_network import MLPClassifier

    if targets.shape[1] < 3 or (not multi_label and len(np.unique(targets.argmax(1))) < 3):
        raise BadRequest("an MLP probe needs three labels or more; use the linear one")
    truth = (targets >= 0.5).astype(int)
    if not multi_label:
        truth = np.eye(targets.shape[1], dtype=int)[targets.argmax(1)]
    model = MLPClassifier((HIDDEN,), alpha=1e-3, max_iter=300, random_state=seed).fit(x, truth)
    return tuple(
        (weights.astype(np.float32), bias.astype(np.float32))
        for weights, bias in zip(model.coefs_, model.intercepts_, strict=True)
    )
