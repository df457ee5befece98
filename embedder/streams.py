"""What can be asked of audio that arrives in blocks, in memory that does not grow with it.

Axes: B clips, s samples of a block, n windows, W samples a window, T timestamps, D values,
t frames of a chunk.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from embedder import windows
from embedder.defaults import (
    MEDIAN,
    SCENE_HOP_MS,
    SCENE_WINDOW_MS,
    THRESHOLD,
    TIMESTAMP_HOP_MS,
    TIMESTAMP_WINDOW_MS,
)
from embedder.errors import BadRequest, UnknownTap
from embedder.events.finder import Event, EventRules, Threshold
from embedder.events.frames import Clock, FrameProbabilities, check_detects, find_events, joined
from embedder.waveforms import Waveforms, checked
from embedder.windows import Plan, WindowPlan, chunk_plan, scene_plan, timestamp_plan
from embedder.zoo import ModelSpec

# Features beside MEL and the backbone's own: sigmoids of the clip's and the frames' logits.
TAGS: Final = "tags"
EVENTS: Final = "events"


@dataclass(frozen=True, slots=True)
class Timestamps:
    """Vectors around points in time.

    `vectors` [B, T, D] and the centres of their windows, `ms` [B, T], in milliseconds (float64).
    Unpacks as a pair.
    """

    vectors: Tensor
    ms: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.vectors, self.ms))


class Streams(nn.Module):
    """A model's answers about consecutive blocks [B, s] of B clips, at the model's `sample_rate`.

    `embedder.stream_audio` gives such blocks of a file.
    """

    name: str
    spec: ModelSpec
    labels: tuple[str, ...]
    taps: tuple[str, ...]  # that make up an embedding
    tap_sizes: dict[str, int]

    @property
    def sample_rate(self) -> int:
        """Hertz; every waveform is expected at this rate."""
        return self.spec.mel.sample_rate

    @abstractmethod
    def window_features(
        self, batch: Tensor | Sequence[Tensor], taps: Iterable[str]
    ) -> dict[str, Tensor]:
        """Features of equally long windows: float32 [N, W] -> {tap: [N, size]}."""

    def join(self, features: dict[str, Tensor], taps: Sequence[str] | None = None) -> Tensor:
        """Concatenate named features along the last axis, in the caller's order."""
        return torch.cat([features[tap] for tap in taps or self.taps], -1)

    def check_taps(self, taps: Iterable[str]) -> tuple[str, ...]:
        """These features in this order; UnknownTap or BadRequest if that cannot be."""
        chosen = tuple(taps)
        for tap in chosen:
            if tap not in self.tap_sizes:
                raise UnknownTap(tap, self.tap_sizes)
        if not chosen:
            raise BadRequest("no taps named; name at least one")
        [(tap, times)] = Counter(chosen).most_common(1)
        if times > 1:
            raise BadRequest(f"tap {tap!r} is named {times} times; name each once")
        return chosen

    def scene_stream(
        self,
        blocks: Iterable[Waveforms],
        *,
        window_ms: float = SCENE_WINDOW_MS,
        hop_ms: float = SCENE_HOP_MS,
    ) -> Tensor:
        """`scene` of audio that arrives in consecutive blocks [B, s]."""
        plan = scene_plan(self.sample_rate, window_ms, hop_ms)
        return self._clip_vectors(blocks, self.taps, plan)

    def tags_stream(self, blocks: Iterable[Waveforms]) -> Tensor:
        """`tags` of audio that arrives in consecutive blocks [B, s]."""
        return self._clip_vectors(blocks, (TAGS,))

    def window_tags_stream(
        self,
        blocks: Iterable[Waveforms],
        *,
        window_ms: float = SCENE_WINDOW_MS,
        hop_ms: float = SCENE_HOP_MS,
    ) -> Iterator[Timestamps]:
        """`window_tags` piece by piece, of audio that arrives in blocks [B, s]."""
        plan = scene_plan(self.sample_rate, window_ms, hop_ms)
        clock = self._clock(blocks)
        first = 0
        for vectors in self._window_vectors(clock, plan, (TAGS,)):
            if plan.whole_clips and clock.samples <= plan.window:
                centre = clock.seconds * 1000 / 2
                yield Timestamps(vectors, vectors.new_full(vectors.shape[:2], centre))
                return
            yield Timestamps(vectors, _centres(vectors, first, hop_ms))
            first += vectors.shape[1]

    def timestamps_stream(
        self,
        blocks: Iterable[Waveforms],
        *,
        window_ms: float = TIMESTAMP_WINDOW_MS,
        hop_ms: float = TIMESTAMP_HOP_MS,
    ) -> Iterator[Timestamps]:
        """`timestamps` piece by piece, of audio that arrives in blocks [B, s]."""
        plan = timestamp_plan(self.sample_rate, window_ms, hop_ms)
        first = 0
        for vectors in self._window_vectors(self._clock(blocks), plan, self.taps):
            yield Timestamps(vectors, _centres(vectors, first, hop_ms))
            first += vectors.shape[1]

    def events_stream(
        self,
        blocks: Iterable[Waveforms],
        *,
        threshold: Threshold = THRESHOLD,
        median: int = MEDIAN,
        min_duration_ms: float = 0.0,
        merge_gap_ms: float = 0.0,
    ) -> list[list[Event]]:
        """`events` of audio that arrives in consecutive blocks [B, s]."""
        rules = EventRules.of(self.labels, threshold, median, min_duration_ms, merge_gap_ms)
        clock = self._clock(blocks)
        return find_events(self._frame_probabilities(clock), rules, clock)

    def frame_probabilities_stream(
        self, blocks: Iterable[Waveforms]
    ) -> Iterator[FrameProbabilities]:
        """`frame_probabilities` piece by piece, of audio that arrives in blocks [B, s]."""
        return self._frame_probabilities(self._clock(blocks))

    def _clock(self, blocks: Iterable[Waveforms]) -> Clock:
        """The blocks checked, and their duration counted."""
        return Clock(checked(blocks, self.sample_rate), self.sample_rate)

    def _frame_probabilities(self, clock: Clock) -> Iterator[FrameProbabilities]:
        check_detects(self.name, self.spec)
        chunks = self._window_vectors(clock, chunk_plan(self.sample_rate), (EVENTS,))
        return joined(chunks, clock)

    def _window_vectors(
        self, blocks: Iterable[Tensor], plan: Plan, taps: Sequence[str]
    ) -> Iterator[Tensor]:
        """[B, n, D] of successive groups of windows (EVENTS: [B, n, t, D]); blocks as checked."""
        for group in windows.cut(blocks, plan):
            clips, count, width = group.shape
            batches = torch.split(group.flatten(0, 1), max(1, windows.BATCH_SAMPLES // width))
            parts = [self.join(self.window_features(batch, taps), taps) for batch in batches]
            vectors = torch.cat(parts) if len(parts) > 1 else parts[0]
            yield vectors.view(clips, count, *vectors.shape[1:])

    def _clip_vectors(
        self, blocks: Iterable[Waveforms], taps: Sequence[str], plan: WindowPlan | None = None
    ) -> Tensor:
        """[B, D], the mean over the windows of each clip."""
        plan = plan or scene_plan(self.sample_rate)
        total, count = torch.zeros((), dtype=torch.float64), 0
        for vectors in self._window_vectors(self._clock(blocks), plan, taps):
            total = total + vectors.double().sum(1)
            count += vectors.shape[1]
        return (total / count).float()


def _centres(vectors: Tensor, first: int, hop_ms: float) -> Tensor:
    """Milliseconds of consecutive timestamps [B, T], exact: index times hop, in float64."""
    index = torch.arange(first, first + vectors.shape[1], dtype=torch.float64)
    return (index * hop_ms).expand(vectors.shape[0], -1).to(vectors.device)
