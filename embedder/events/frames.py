"""From chunks of 10 s to the frames of a clip and its events, and which models find events.

Axes: B clips, s samples of a block, n chunks, t frames of one chunk, T frames of the clip,
N labels. A frame covers 40 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from embedder.defaults import FRAME_MS
from embedder.errors import BadRequest
from embedder.events.finder import Event, EventFinder, EventRules, in_order
from embedder.labels import strong_labels
from embedder.zoo import MODELS, FrameMNConfig, ModelSpec


def find_events(
    pieces: Iterable[Iterable[Tensor]], rules: EventRules, seconds: Callable[[], float]
) -> list[list[Event]]:
    """The events of each clip, by onset, from pieces of (probabilities [B, T, N], ms [B, T]).

    `seconds` is asked for the length of the clips once all pieces have come.
    """
    finders: list[EventFinder] = []
    by_clip: list[list[Event]] = []
    for values, _ in pieces:
        finders = finders or [EventFinder(rules) for _ in values]
        by_clip = by_clip or [[] for _ in values]
        for finder, events, frames in zip(finders, by_clip, values.cpu().numpy(), strict=True):
            events += finder.push(frames)
    for finder, events in zip(finders, by_clip, strict=True):
        events += finder.finish(seconds())
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
