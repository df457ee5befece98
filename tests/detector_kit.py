"""A detector with random weights that finds many events, and sounds for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from embedder.model import AudioEmbedder
from embedder.networks.frame_mn import FrameMN
from tests.threads import one_thread

NAME = "fmn04_strong"
RATE = 16_000


def bursts(seconds: float, seed: int = 0) -> Tensor:
    """Noise [S] that comes and goes about every second."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(round(seconds * RATE), generator=generator) * 0.1
    spans = torch.rand(int(seconds) + 2, generator=generator) * RATE + RATE / 4
    edges = spans.cumsum(0)
    loud = torch.bucketize(torch.arange(len(noise)), edges) % 2
    return noise * (0.02 + loud)


@contextmanager
def lively_detector(name: str = NAME) -> Iterator[AudioEmbedder]:
    """Every label's logit has mean -1 and deviation 2 on `bursts`; one thread."""
    with one_thread():
        torch.manual_seed(0)
        model = AudioEmbedder.build(name)
        mel = model.frontend(bursts(10.0)[None])
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                # Statistics of this clip: without, random layers fade to nothing.
                layer.momentum = 1.0
        network = model.backbone
        assert isinstance(network, FrameMN)
        model.train()
        network.detect(mel)
        model.eval()
        head = network.strong_head
        logits = network.detect(mel).strong[0]  # T N
        scale = 2 / logits.std(0)
        head.weight.mul_(scale[:, None])
        head.bias.sub_(logits.mean(0)).mul_(scale).sub_(1)
        yield model
