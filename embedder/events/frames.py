"""From chunks of 10 s to the frames of a clip, and which models tell frames apart.

Axes: B clips, n chunks, t frames of one chunk, T frames of the clip, N labels.
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
    """Probability of every label in every frame.

    `values` [B, T, N] and the centres of the frames, `ms` [B, T], in milliseconds (float64).
    Unpacks as a pair.
    """

    values: Tensor
    ms: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.values, self.ms))


class Clock(Iterator[Tensor]):
    """Blocks [B, s] as they come, and how long they have been."""

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
        """Length of a clip so far."""
        return self.samples / self._sample_rate

    @property
    def frames(self) -> int:
        """Frames of a clip so far."""
        return n_frames(self.samples, self._sample_rate)


def joined(chunks: Iterable[Tensor], clock: Clock) -> Iterator[FrameProbabilities]:
    """Chunks [B, n, t, N] of what the clock reads, without the frames after the clip's end."""
    first = 0
    for chunk in chunks:
        values = chunk.flatten(1, 2)[:, : clock.frames - first]  # B n t N -> B T N
        ms = torch.from_numpy(frame_ms(values.shape[1], first)).expand(len(values), -1)
        yield FrameProbabilities(values, ms.to(values.device))
        first += values.shape[1]


def find_events(
    pieces: Iterable[FrameProbabilities], rules: EventRules, clock: Clock
) -> list[list[Event]]:
    """The events of each clip, by onset, from frames of what the clock reads."""
    finders: list[EventFinder] = []
    found: list[list[Event]] = []
    for values, _ in pieces:
        finders = finders or [EventFinder(rules) for _ in values]
        found = found or [[] for _ in values]
        for finder, events, frames in zip(finders, found, values.cpu().numpy(), strict=True):
            events += finder.push(frames)
    for finder, events in zip(finders, found, strict=True):
        events += finder.finish(clock.seconds)
    return [in_order(events) for events in found]


def n_frames(samples: int, sample_rate: int) -> int:
    """Frames that a clip of so many samples touches."""
    return -(-samples * 1000 // (FRAME_MS * sample_rate))


def frame_ms(count: int, first: int = 0) -> NDArray[np.float64]:
    """Milliseconds of the centres of `count` frames."""
    return (np.arange(first, first + count, dtype=np.float64) + 0.5) * FRAME_MS


def check_detects(name: str, spec: ModelSpec) -> None:
    """BadRequest unless this model's labels are told of frames; a probe's are not."""
    if not detects(spec):
        raise BadRequest(f"{name} finds no events; choose one of {', '.join(detectors())}")


def detects(spec: ModelSpec) -> bool:
    """Whether a model's labels are told of frames."""
    return isinstance(spec.network, FrameMNConfig) and not spec.probed


def detectors() -> list[str]:
    """The published models of sound events."""
    return [
        name
        for name, spec in MODELS.items()
        if isinstance(spec.network, FrameMNConfig)
        and spec.network.n_classes == len(strong_labels())
    ]
