"""How well a detector ranks frames, counted while they come. Axes: T frames, C labels."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from eval.scores.metrics import Metrics

BINS: Final = 4000  # of the log-odds from -20 to 20


class FrameScores:
    """How well frames of each label are ranked, counted in small memory; labels count alike."""

    def __init__(self, labels: int) -> None:
        self._counts = np.zeros((2, labels, BINS), np.int64)  # without the label, with it

    def add(self, probabilities: NDArray[np.float32], truth: NDArray[np.float32]) -> None:
        """Probabilities and targets of more frames, both [T, C]."""
        p = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
        bins = np.clip(((np.log(p / (1 - p)) + 20) * (BINS / 40)).astype(int), 0, BINS - 1)
        for label in range(bins.shape[1]):
            for with_it in (0, 1):
                chosen = bins[(truth[:, label] >= 0.5) == with_it, label]
                self._counts[with_it, label] += np.bincount(chosen, minlength=BINS)

    def summary(self) -> Metrics:
        """Means over the labels that occur of the area under the ROC curve (0.5 is chance) and of
        average precision, and what chance has of the latter: the share of frames."""
        areas, precisions, shares = [], [], []
        for without, with_it in self._counts.transpose(1, 0, 2)[:, :, ::-1]:  # the surest first
            if not (with_it.any() and without.any()):
                continue
            hits, misses = np.cumsum(with_it), np.cumsum(without)
            areas.append((with_it * (misses[-1] - misses + without / 2)).sum())
            areas[-1] /= hits[-1] * misses[-1]
            precisions.append((with_it * hits / np.maximum(hits + misses, 1)).sum() / hits[-1])
            shares.append(hits[-1] / (hits[-1] + misses[-1]))
        if not areas:
            return {}
        return {
            "mean_frame_auc": float(np.mean(areas)),
            "mean_frame_ap": float(np.mean(precisions)),
            "chance_frame_ap": float(np.mean(shares)),
        }
