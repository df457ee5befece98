"""Sound events: frame probabilities -> median filter -> thresholds -> onsets and offsets.

The post-processing of arXiv 2503.11373 (section III-B), for audio that comes piece by piece.

Axes: T frames of the clip, t frames of one piece, N labels. Frame i covers the 40 ms that begin at
i x 40 ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from embedder.defaults import FRAME_MS, MEDIAN, THRESHOLD
from embedder.errors import BadRequest

Frames: TypeAlias = NDArray[np.float32]  # probabilities, t N
Threshold: TypeAlias = float | Sequence[float] | Mapping[str, float]

_COMPARED_AT_ONCE: Final = 1 << 22  # values, which take 16 MiB


@dataclass(frozen=True, slots=True)
class Event:
    """A sound with its onset and offset, in seconds from the clip's beginning.

    `score` is the label's highest probability in it, after the median filter.
    """

    label: str
    onset_s: float
    offset_s: float
    score: float


@dataclass(frozen=True, slots=True)
class EventRules:
    """What counts as an event; `of` makes rules and explains them."""

    labels: tuple[str, ...]
    thresholds: NDArray[np.float64]  # N; infinite for labels that are not looked for
    median: int = MEDIAN  # frames
    min_duration_ms: float = 0.0
    merge_gap_ms: float = 0.0

    @classmethod
    def of(
        cls,
        labels: Sequence[str],
        threshold: Threshold = THRESHOLD,
        median: int = MEDIAN,
        min_duration_ms: float = 0.0,
        merge_gap_ms: float = 0.0,
    ) -> EventRules:
        """The rules for these labels.

        Parameters
        ----------
        threshold : a label is active in frames with this probability or more, above 0 and up to 1.
            Give one number for all labels, a number for each in their order, or a mapping by label;
            labels that a mapping does not name are not looked for.
        median : width of the filter in frames of 40 ms, odd, 1 to 999; 1 filters nothing.
        min_duration_ms : events that are shorter, after joining, are left out.
        merge_gap_ms : events of one label with a gap of at most this are joined.

        Raises
        ------
        BadRequest : a value is out of its range, or a label is none of `labels`.
        """
        if not (1 <= median <= 999 and median % 2):
            raise BadRequest(f"median is {median!r} frames; choose an odd number from 1 to 999")
        for name, value in (("min_duration_ms", min_duration_ms), ("merge_gap_ms", merge_gap_ms)):
            if not 0.0 <= value < float("inf"):
                raise BadRequest(f"{name} is {value!r}; choose milliseconds from 0 on")
        thresholds = _thresholds(labels, threshold)
        return cls(tuple(labels), thresholds, median, min_duration_ms, merge_gap_ms)


class MedianFilter:
    """The median over `width` frames, for a clip [T, N] that comes in pieces [t, N].

    The clip is mirrored at its ends, so that as many frames come out as went in, the same whatever
    the pieces. With a `floor` [N], only medians that reach it are computed, and all others are 0.
    `compared` counts the values that medians were computed from: it measures the filter's cost.
    """

    def __init__(self, width: int, floor: NDArray[np.float64] | None = None) -> None:
        self.compared = 0
        self._width = width
        self._half = width // 2
        self._floor = floor
        self._held: Frames | None = None
        self._begun = False

    def push(self, frames: Frames) -> Frames:
        """Add frames; the filtered frames that no later frame can change, not given before.

        All calls together have given `width // 2` frames less than were added.
        """
        held = frames if self._held is None else np.concatenate([self._held, frames])
        if not self._begun and len(held) > self._half:
            held = np.concatenate([held[: self._half][::-1], held])
            self._begun = True
        return self._filter(held) if self._begun else self._wait(held)

    def finish(self) -> Frames:
        """The last filtered frames, when all frames were added."""
        assert self._held is not None
        held = self._held
        before = 0 if self._begun else self._half
        return self._filter(np.pad(held, ((before, self._half), (0, 0)), mode="symmetric"))

    def _wait(self, held: Frames) -> Frames:
        self._held = held
        return held[:0]

    def _filter(self, held: Frames) -> Frames:
        self._held = held[max(0, len(held) - 2 * self._half) :]
        if len(held) < self._width:
            return held[:0]
        windows = sliding_window_view(held, self._width, axis=0)  # t N width
        if self._floor is None:
            self.compared += windows.size
            return self._medians(windows)
        medians = np.zeros(windows.shape[:2], np.float32)
        rows, columns = np.nonzero(self._reached(held, self._floor))
        self.compared += rows.size * self._width
        for first in range(0, rows.size, step := max(1, _COMPARED_AT_ONCE // self._width)):
            some = rows[first : first + step], columns[first : first + step]
            medians[some] = self._medians(windows[some])
        return medians

    def _medians(self, windows: Frames) -> Frames:
        medians: Frames = np.partition(windows, self._half, axis=-1)[..., self._half]
        return medians

    def _reached(self, held: Frames, floor: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each median [t, N] reaches the floor: most values of its window must do so."""
        count = np.zeros((len(held) + 1, held.shape[1]), np.int32)
        np.cumsum(held >= floor, axis=0, out=count[1:])
        reached: NDArray[np.bool_] = count[self._width :] - count[: -self._width] > self._half
        return reached


@dataclass(slots=True)
class _Run:
    """Frames from `start` up to, but without, `end` that are one event so far."""

    start: int
    end: int
    peak: float


class EventFinder:
    """Finds the events of one clip, whose frame probabilities come in pieces [t, N]."""

    def __init__(self, rules: EventRules) -> None:
        self._rules = rules
        self._median = MedianFilter(rules.median, rules.thresholds)
        self._open: dict[int, _Run] = {}  # by label's index: runs that may still grow
        self._seen = 0

    @property
    def compared(self) -> int:
        """How many values medians were computed from so far: it measures the cost."""
        return self._median.compared

    def push(self, frames: Frames) -> list[Event]:
        """Add frames; the events that have ended since the last call, by onset."""
        return self._find(self._median.push(frames))

    def finish(self, seconds: float) -> list[Event]:
        """The last events, by onset, when all frames of a clip of this length were added."""
        events = self._find(self._median.finish())
        events += [self._event(index, run) for index, run in self._open.items() if self._long(run)]
        self._open = {}
        cut = (
            Event(event.label, event.onset_s, min(event.offset_s, seconds), event.score)
            for event in events
        )
        return in_order(cut)

    def _find(self, frames: Frames) -> list[Event]:
        ended: list[tuple[int, _Run]] = []
        gap = self._rules.merge_gap_ms / FRAME_MS
        for index, run in _runs(frames, self._rules.thresholds):
            run.start, run.end = run.start + self._seen, run.end + self._seen
            before = self._open.get(index)
            if before is not None and run.start - before.end <= gap:
                before.end, before.peak = run.end, max(before.peak, run.peak)
                continue
            if before is not None:
                ended.append((index, before))
            self._open[index] = run
        self._seen += len(frames)
        # A later run begins at `_seen` or after, too late to be joined with these.
        closed = [index for index, run in self._open.items() if self._seen - run.end > gap]
        ended += [(index, self._open.pop(index)) for index in closed]
        return in_order(self._event(index, run) for index, run in ended if self._long(run))

    def _long(self, run: _Run) -> bool:
        return (run.end - run.start) * FRAME_MS >= self._rules.min_duration_ms

    def _event(self, index: int, run: _Run) -> Event:
        onset, offset = run.start * FRAME_MS / 1000, run.end * FRAME_MS / 1000
        return Event(self._rules.labels[index], onset, offset, run.peak)


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events sorted by onset, then by offset, then by label."""
    return sorted(events, key=lambda event: (event.onset_s, event.offset_s, event.label))


def _runs(frames: Frames, thresholds: NDArray[np.float64]) -> Iterator[tuple[int, _Run]]:
    """The runs of active frames in [t, N], with their label's index; a label's in order of time."""
    if not len(frames):
        return
    labels = np.flatnonzero((frames >= thresholds).any(0))  # those with an active frame
    active = np.zeros((len(frames) + 2, len(labels)), np.int8)
    active[1:-1] = frames[:, labels] >= thresholds[labels]
    edges = np.diff(active, axis=0).T  # N t+1
    columns, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    for index, start, end in zip(
        labels[columns].tolist(), starts.tolist(), ends.tolist(), strict=True
    ):
        yield index, _Run(start, end, float(frames[start:end, index].max()))


def _thresholds(labels: Sequence[str], threshold: Threshold) -> NDArray[np.float64]:
    if isinstance(threshold, Mapping):
        for label in threshold:
            if label not in labels:
                raise BadRequest(f"no label {label!r} in this model; name labels as it does")
        given = list(threshold.values())
        values = [threshold.get(label, np.inf) for label in labels]
    else:
        given = list(threshold) if isinstance(threshold, Sequence) else [threshold] * len(labels)
        values = given
    if len(values) != len(labels):
        raise BadRequest(f"{len(values)} thresholds for {len(labels)} labels; give one for each")
    for value in given:
        if not 0.0 < value <= 1.0:
            raise BadRequest(f"threshold {value!r} is no probability; choose above 0, up to 1")
    return np.array(values, np.float64)
