"""Scores of tags, embeddings and students. Axes: N examples, C classes, D values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Metrics = dict[str, float]  # scores by name


def average_precision(scores: Scores, truth: NDArray[np.bool_]) -> float:
    """Area under the precision-recall steps of one class: [N], [N] -> [0, 1]; NaN without truth."""
    if not truth.any():
        return float("nan")
    hits = truth[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def mean_average_precision(scores: Scores, targets: Scores) -> float:
    """Mean over the classes that occur: [N, C], [N, C] -> [0, 1].

    A target of at least 0.5 is a hit; NaN (not annotated) leaves the example out of its class.
    """
    each = []
    for score, target in zip(scores.T, targets.T, strict=True):
        known = ~np.isnan(target)
        each.append(average_precision(score[known], target[known] >= 0.5))
    found = [value for value in each if not np.isnan(value)]
    return float(np.mean(found)) if found else float("nan")


def accuracy(scores: Scores, targets: Scores) -> float:
    """Share of examples whose highest score is the target's: [N, C], [N, C] -> [0, 1]."""
    return float(np.mean(scores.argmax(1) == targets.argmax(1)))


def relative_error(student: Scores, teacher: Scores) -> float:
    """Unexplained share of the teacher's variance, mean over values: [N, D], [N, D] -> 0 is equal.

    1 is what a constant, the teacher's mean, would get.
    """
    error = ((student - teacher) ** 2).mean(0)
    return float((error / (teacher.var(0) + 1e-6)).mean())


def centred_cosine(student: Scores, teacher: Scores) -> float:
    """Mean cosine similarity of matching rows, the teacher's mean taken from both."""
    centre = teacher.mean(0)
    a, b = student - centre, teacher - centre
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-12)).mean())
