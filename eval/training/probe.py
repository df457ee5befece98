"""Probes: classifiers that scikit-learn trains on a model's embeddings in seconds.

A probe is saved as a file that loads as a model; its labels are the model's tags.

Axes: N examples, D embedding values, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from embedder.probe import Probe, Vectors
from eval.data.labelled import Dataset, Waves

STRENGTH: Final = 0.01  # inverse regularisation of the linear probe, on standardised values
HIDDEN: Final = 256  # units of the MLP probe's hidden layer
ALWAYS: Final = 1e3  # logit of a label that every clip has, or none

Layer = tuple[Vectors, Vectors]  # weights [in, out], bias [out]


def fit_probe(
    vectors: Vectors,
    dataset: Dataset,
    embedder: AudioEmbedder,
    kind: str = "linear",
    seed: int = 0,
) -> Probe:
    """Train a probe on embeddings of a dataset's clips.

    Parameters
    ----------
    vectors : embeddings [N, D], as from `embed`.
    dataset : its labels become the probe's; labels that were not judged count as absent.
    kind : "linear" or "mlp".
    """
    if embedder.spec.probed:
        raise BadRequest(f"{embedder.name} is a probe itself; name the model underneath")
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
        labels=dataset.labels,
        model=embedder.name,
        weights_sha256=embedder.weights_sha256,
        taps=embedder.taps,
        multi_label=dataset.multi_label,
        mean=mean,
        scale=scale,
        layers=layers,
    )


@torch.inference_mode()
def embed(embedder: AudioEmbedder, waves: Waves, taps: Sequence[str] | None = None) -> Vectors:
    """Return the scene embeddings of whole clips, each computed alone: [N, D]."""
    chosen = tuple(taps or embedder.taps)
    rows = [
        embedder.join(embedder.features(waves[index], taps=chosen), chosen)[0].cpu()
        for index in range(len(waves))
    ]
    return np.asarray(torch.stack(rows).numpy())


def _linear(x: Vectors, targets: Vectors, multi_label: bool) -> Layer:
    """Fit logistic regression: one for all labels, or one a label if `multi_label`."""
    from sklearn.linear_model import LogisticRegression

    def fit(truth: Any) -> Any:
        return LogisticRegression(C=STRENGTH, max_iter=1000).fit(x, truth)

    if not multi_label:
        truth = targets.argmax(1)
        classes = np.unique(truth)
        if len(classes) == 1:
            return _spread((np.zeros((x.shape[1], 1)), np.zeros(1)), classes, targets.shape[1])
        model = fit(truth)
        return _spread((model.coef_.T, model.intercept_), classes, targets.shape[1])
    columns, biases = [], []
    for truth in targets.T >= 0.5:
        if truth.all() or not truth.any():
            columns.append(np.zeros(x.shape[1]))
            biases.append(ALWAYS if truth.all() else -ALWAYS)
        else:
            model = fit(truth)
            columns.append(model.coef_[0])
            biases.append(float(model.intercept_[0]))
    return np.stack(columns, 1).astype(np.float32), np.array(biases, np.float32)


def _mlp(x: Vectors, targets: Vectors, multi_label: bool, seed: int) -> tuple[Layer, ...]:
    from sklearn.neural_network import MLPClassifier

    truth = (targets >= 0.5).astype(int) if multi_label else targets.argmax(1)
    if targets.shape[1] < 2 or len(np.unique(truth)) < 2:
        raise BadRequest("an MLP probe needs two labels or more; use the linear one")
    model = MLPClassifier((HIDDEN,), alpha=1e-3, max_iter=300, random_state=seed).fit(x, truth)
    *inner, last = zip(model.coefs_, model.intercepts_, strict=True)
    if not multi_label:
        last = _spread(last, model.classes_, targets.shape[1])
    return tuple(
        (weights.astype(np.float32), bias.astype(np.float32)) for weights, bias in (*inner, last)
    )


def _spread(last: tuple[NDArray[Any], NDArray[Any]], classes: NDArray[Any], count: int) -> Layer:
    """Widen a layer of the `classes` that occur in training to all `count` labels.

    The other labels get a logit that makes them never likely. For two classes, scikit-learn
    returns a single column, the difference of their logits, which is split into two.
    """
    weights, bias = last
    if len(classes) == 2:
        weights, bias = np.hstack([-weights, weights]) / 2, np.hstack([-bias, bias]) / 2
    all_weights = np.zeros((len(weights), count), np.float32)
    all_biases = np.full(count, -ALWAYS, np.float32)
    all_weights[:, classes], all_biases[classes] = weights, bias
    return all_weights, all_biases
