"""Scores of frames are those of the textbooks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from eval.scores.frame_scores import FrameScores


def test_frame_scores_are_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((4000, 3)) < (0.2, 0.5, 0.0)).astype(np.float32)
    probabilities = (1 / (1 + np.exp(-rng.normal(2 * truth - 3, 2)))).astype(np.float32)
    scores = FrameScores(3)
    for part in range(0, 4000, 1000):
        scores.add(probabilities[part : part + 1000], truth[part : part + 1000])
    got = scores.summary()
    pairs = [(truth[:, n], probabilities[:, n]) for n in (0, 1)]  # the third label never occurs
    assert got["mean_frame_auc"] == pytest.approx(np.mean([roc_auc_score(*p) for p in pairs]), 1e-3)
    precision = np.mean([average_precision_score(*p) for p in pairs])
    assert got["mean_frame_ap"] == pytest.approx(precision, abs=2e-3)
    assert got["chance_frame_ap"] == pytest.approx(truth[:, :2].mean(), abs=1e-6)
    assert FrameScores(1).summary() == {}
    undecided = FrameScores(3)
    undecided.add(np.full_like(probabilities, 0.3), truth)
    assert undecided.summary()["mean_frame_auc"] == pytest.approx(0.5)
