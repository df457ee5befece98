"""Rank scores of a detector's frames, counted batch by batch. Axes: T frames, C labels.

scikit-learn's scores need all frames at once: 40 million values for an hour of AudioSet Strong's
447 labels. Histograms of the log-odds need 4000 counts for each label, however long the audio is.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from eval.scores.metrics import Metrics

BINS: Final = 4000  # of the log-odds from -20 to 20


class FrameScores:
    """Counts of the frames with and without each label, by the log-odds that the model gave."""

    def __init__(self, labels: int) -> None:
        self._counts = np.zeros((2, labels, BINS), np.int64)  # frames without the label, with it

    def add(self, probabilities: NDArray[np.float32], truth: NDArray[np.float32]) -> None:
        """Count more frames: probabilities and targets, both [T, C]."""
        p = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
        bins = np.clip(((np.log(p / (1 - p)) + 20) * (BINS / 40)).astype(int), 0, BINS - 1)
        for label in range(bins.shape[1]):
            for with_it in (0, 1):
                chosen = bins[(truth[:, label] >= 0.5) == with_it, label]
                self._counts[with_it, label] += np.bincount(chosen, minlength=BINS)

    def summary(self) -> Metrics:
        """Mean area under the ROC curve (0.5 is chance) and mean average precision of the labels.

        All labels that occur count alike. `chance_frame_ap` is the average precision of guessing:
        the share of frames that have the label.
        """
        areas, precisions, shares = [], [], []
        for without, with_it in self._counts.transpose(1, 0, 2)[:, :, ::-1]:  # the highest first
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
