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
from eval.scores.metrics import centred_cosine, mean_average_precision, relative_error
from eval.training.distill import top_labels
from eval.training.trainer import Metrics

TAPS: Final = ("b5", "b11", "b13", "b15", "clf1", "logits")
CROP: Final = 500  # frames, 5 s
SHORTEST: Final = 20  # frames that a clip's last crop must have left
MOST_CROPS: Final = 12  # of one clip, so that long ambiences do not outvote the rest
BATCH: Final = 16


def crops(corpus: Corpus) -> Tensor:
    """Consecutive crops of every clip, padded with silence: log-mels [N, M, F]."""
    found = []
    for clip in corpus.clips:
        for begin in range(0, min(clip.frames, MOST_CROPS * CROP), CROP):
            if begin and clip.frames - begin < SHORTEST:
                continue
            power = corpus.power(clip, begin, CROP)
            padded = np.pad(power, ((0, CROP - len(power)), (0, 0)))
            found.append(to_log_mel(torch.from_numpy(padded)).T)
    return torch.stack(found)


class HeldOut:
    """Crops and what the teacher makes of them; `compare` scores a student's networks."""

    def __init__(self, teacher: Backbone, mels: Tensor, taps: Sequence[str] = TAPS) -> None:
        self.mels, self.taps = mels, tuple(taps)
        self.wanted = self.features(teacher.eval())

    @torch.inference_mode()
    def features(self, network: nn.Module) -> dict[str, NDArray[np.float32]]:
        """{tap: [N, D]} of a network in eval mode."""
        assert isinstance(network, Backbone)
        device = next(network.parameters()).device
        batches = (mel.to(device) for mel in torch.split(self.mels, BATCH))
        parts = [network.features_by_name(mel, self.taps) for mel in batches]
        return {tap: torch.cat([part[tap] for part in parts]).cpu().numpy() for tap in self.taps}

    def compare(self, student: nn.Module) -> Metrics:
        """Relative error and centred cosine per tap, and mAP against the teacher's top labels."""
        found = self.features(student)
        scores: Metrics = {}
        for tap in self.taps:
            scores[f"error_{tap}"] = relative_error(found[tap], self.wanted[tap])
            scores[f"cosine_{tap}"] = centred_cosine(found[tap], self.wanted[tap])
        if "logits" in self.taps:
            truth = top_labels(self.wanted["logits"])
            scores["tag_map"] = mean_average_precision(found["logits"], truth)
        return scores
