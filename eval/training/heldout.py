"""How close a student is to its teacher, on sound that the student never trains on.

Axes: N crops, M mel bands, F frames, D values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedder.networks.backbone import Backbone
from eval.data.corpus import Corpus, to_log_mel
from eval.scores.metrics import Metrics, centred_cosine, mean_average_precision, relative_error
from eval.training.distill import top_labels

TAPS: Final = ("b5", "b11", "b13", "b15", "clf1", "logits")
CROP: Final = 500  # frames of 10 ms: 5 s
SHORTEST: Final = 20  # frames; a shorter rest at the end of a clip is left out
MOST_CROPS: Final = 12  # of one clip: otherwise, long recordings would outweigh the others
BATCH: Final = 16  # crops that go through a network at once


def crops(corpus: Corpus) -> Tensor:
    """Cut every clip into consecutive crops, padded with silence: log-mels [N, M, CROP]."""
    mels = []
    for clip in corpus.clips:
        for begin in range(0, min(clip.frames, MOST_CROPS * CROP), CROP):
            if begin and clip.frames - begin < SHORTEST:
                continue
            power = corpus.power(clip, begin, CROP)
            padded = np.pad(power, ((0, CROP - len(power)), (0, 0)))
            mels.append(to_log_mel(torch.from_numpy(padded)).T)
    return torch.stack(mels)


class HeldOut:
    """Held-out crops and the teacher's features of them, with which students are compared.

    `mels` are log-mels [N, M, F], as from `crops`.
    """

    def __init__(self, teacher: Backbone, mels: Tensor, taps: Sequence[str] = TAPS) -> None:
        self.mels, self.taps = mels, tuple(taps)
        self.targets = self.features(teacher.eval())

    @torch.inference_mode()
    def features(self, network: nn.Module) -> dict[str, NDArray[np.float32]]:
        """Return {tap: [N, D]} of a network in eval mode."""
        assert isinstance(network, Backbone)
        device = next(network.parameters()).device
        batches = (mel.to(device) for mel in torch.split(self.mels, BATCH))
        parts = [network.features_by_name(mel, self.taps) for mel in batches]
        return {tap: torch.cat([part[tap] for part in parts]).cpu().numpy() for tap in self.taps}

    def compare(self, student: nn.Module) -> Metrics:
        """Score a student against the teacher.

        For each tap: the relative error and the centred cosine of its features. From the logits:
        mAP against the teacher's `top_labels`.
        """
        features = self.features(student)
        scores: Metrics = {}
        for tap in self.taps:
            scores[f"error_{tap}"] = relative_error(features[tap], self.targets[tap])
            scores[f"cosine_{tap}"] = centred_cosine(features[tap], self.targets[tap])
        if "logits" in self.taps:
            truth = top_labels(self.targets["logits"])
            scores["tag_map"] = mean_average_precision(features["logits"], truth)
        return scores
