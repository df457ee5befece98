"""From chunks of 10 s to the frames of a clip and its events, and which models find events.

Axes: B clips, s samples of a block, n chunks, t frames of one chunk, T frames of the clip,
N labels. A frame covers 40 ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.defaults import FRAME_MS
from embedder.errors import BadRequest
from embedder.events.finder import Event, EventFinder, EventRules, in_order
from embedder.labels import strong_labels
from embedder.zoo import MODELS, FrameMNConfig, ModelSpec


@dataclass(frozen=True, slots=True)
class FrameProbabilities:
    """The probability of every label in every frame; it unpacks as a pair.

    `values` are float32 [B, T, N] in [0, 1]; `ms` are the centres of the frames in milliseconds,
    float64 [B, T].
    """

    values: Tensor
    ms: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.values, self.ms))


class Clock(Iterator[Tensor]):
    """Passes blocks [B, s] on as they come, and measures the clips' length so far."""

    def __init__(self, blocks: Iterable[Tensor], sample_rate: int) -> None:
        self._blocks = iter(blocks)
        self._sample_rate = sample_rate
        self.samples = 0

    def __next__(self) -> Tensor:
        block = next(self._blocks)
        self.samples += block.shape[1]
        return block

    @property
    def seconds(self) -> float:
        """Length of each clip so far."""
        return self.samples / self._sample_rate

    @property
    def frames(self) -> int:
        """Frames of each clip so far."""
        return n_frames(self.samples, self._sample_rate)


def joined(chunks: Iterable[Tensor], clock: Clock) -> Iterator[FrameProbabilities]:
    """Probabilities of chunks [B, n, t, N] -> those of frames, without frames after the clips' end.

    The chunks are those of the blocks that the clock passes on.
    """
    first = 0
    for chunk in chunks:
        values = chunk.flatten(1, 2)[:, : clock.frames - first]  # B n t N -> B T N
        ms = torch.from_numpy(frame_ms(values.shape[1], first)).expand(len(values), -1)
        yield FrameProbabilities(values, ms.to(values.device))
        first += values.shape[1]


def find_events(
    pieces: Iterable[FrameProbabilities], rules: EventRules, clock: Clock
) -> list[list[Event]]:
    """The events of each clip, by onset, in the frames of the blocks that the clock passes on."""
    finders: list[EventFinder] = []
    by_clip: list[list[Event]] = []
    for values, _ in pieces:
        finders = finders or [EventFinder(rules) for _ in values]
        by_clip = by_clip or [[] for _ in values]
        for finder, events, frames in zip(finders, by_clip, values.cpu().numpy(), strict=True):
            events += finder.push(frames)
    for finder, events in zip(finders, by_clip, strict=True):
        events += finder.finish(clock.seconds)
    return [in_order(events) for events in by_clip]


def n_frames(samples: int, sample_rate: int) -> int:
    """How many frames a clip of this many samples has; the last may be cut short."""
    return -(-samples * 1000 // (FRAME_MS * sample_rate))


def frame_ms(count: int, first: int = 0) -> NDArray[np.float64]:
    """The centres of `count` frames, from frame number `first` on, in milliseconds [count]."""
    return (np.arange(first, first + count, dtype=np.float64) + 0.5) * FRAME_MS


def check_detects(name: str, spec: ModelSpec) -> None:
    """Raise BadRequest unless this model finds events, as `detects` says."""
    if not detects(spec):
        raise BadRequest(f"{name} finds no events; choose one of {', '.join(detectors())}")


def detects(spec: ModelSpec) -> bool:
    """Whether a model finds events: it has frame-wise heads, and its labels are not a probe's."""
    return isinstance(spec.network, FrameMNConfig) and not spec.probed


def detectors() -> list[str]:
    """The names of the published models that find the events of AudioSet Strong."""
    return [
        name
        for name, spec in MODELS.items()
        if isinstance(spec.network, FrameMNConfig)
        and spec.network.n_classes == len(strong_labels())
    ]
