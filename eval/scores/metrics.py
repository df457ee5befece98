"""Scores of tags, embeddings and students. Axes: N examples, C classes, D values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Metrics = dict[str, float]  # scores by name


def mean_average_precision(scores: Scores, targets: Scores) -> float:
    """Mean over the classes that occur: [N, C], [N, C] -> [0, 1]; NaN where no class occurs.

    A target of at least 0.5 means that the example has the class. A target of NaN (not annotated)
    leaves the example out of this class.
    """
    from sklearn.metrics import average_precision_score

    precisions = []
    for score, target in zip(scores.T, targets.T, strict=True):
        known = ~np.isnan(target)
        truth = target[known] >= 0.5
        if truth.any():
            precisions.append(average_precision_score(truth, score[known]))
    return float(np.mean(precisions)) if precisions else float("nan")


def accuracy(scores: Scores, targets: Scores) -> float:
    """Share of examples whose highest score is that of their class: [N, C], [N, C] -> [0, 1]."""
    return float(np.mean(scores.argmax(1) == targets.argmax(1)))


def relative_error(student: Scores, teacher: Scores) -> float:
    """Squared error over the teacher's variance, mean over values: [N, D], [N, D] -> [0, inf).

    0 means equal; a student that always answers with the teacher's mean gets 1.
    """
    error = ((student - teacher) ** 2).mean(0)
    return float((error / (teacher.var(0) + 1e-6)).mean())


def centred_cosine(student: Scores, teacher: Scores) -> float:
    """Mean cosine similarity of matching rows, after subtracting the teacher's mean from both."""
    centre = teacher.mean(0)
    a, b = student - centre, teacher - centre
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-12)).mean())
