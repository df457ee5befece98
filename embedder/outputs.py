"""What can be asked of a clip, and how its windows become one answer.

    samples ─ windows (plan) ─ features (taps) ─┬─ Mean ─ one vector                          [D]
                                                └─ Rows ─ a vector for each window, or frame  [T, D]

An `Output` is made of a sample rate and of names of features, and knows no model. Everything that
runs a network goes by it: Python pushes the features of batch after batch, the service waits for
its batcher between two pushes, a bulk job writes rows as they come, and HEAR holds two outputs.
To add an output: its name in `Name`, its row in `_USUAL`, its feature where the network runs
(`AudioEmbedder.window_features`) and, if its rows are not windows, what they are in `n_rows`,
`rows` and `centres_ms`. Files and HTTP formats of an answer are no business of this file.

Axes: B clips, S samples, n windows, t frames of a window, T rows (windows or frames) of a clip,
D values of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.defaults import (
    FRAME_MS,
    SCENE_HOP_MS,
    SCENE_WINDOW_MS,
    TIMESTAMP_HOP_MS,
    TIMESTAMP_WINDOW_MS,
)
from embedder.errors import BadRequest
from embedder.events.frames import frame_ms, n_frames
from embedder.waveforms import Clock
from embedder.windows import Plan, chunk_plan, scene_plan, timestamp_plan

Name: TypeAlias = Literal["embedding", "tags", "events"]
Kind: TypeAlias = Literal["scene", "timestamps"]
Array = TypeVar("Array", Tensor, NDArray[np.float32])

# Features beside those of front end and backbone: sigmoids of the clip's and the frames' logits.
# Each has a value for every label.
TAGS: Final = "tags"
EVENTS: Final = "events"


@dataclass(frozen=True, slots=True)
class Timestamps:
    """Vectors around points in time.

    `vectors` [B, T, D] and the centres of their windows or frames, `ms` [B, T], in milliseconds
    (float64). Unpacks as a pair.
    """

    vectors: Tensor
    ms: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.vectors, self.ms))

    @property
    def values(self) -> Tensor:
        """The vectors, by the name that suits probabilities [B, T, N]."""
        return self.vectors


@dataclass(frozen=True, slots=True)
class Output:
    """One question about a clip, with every default filled in; `Output.of` makes it.

    Two outputs that are equal ask for the same values of the same audio and model.
    """

    name: Name  # what the values are
    kind: Kind  # "scene": the mean over windows; "timestamps": a row for each window or frame
    plan: Plan  # which windows
    taps: tuple[str, ...]  # features to join, in this order
    sample_rate: int
    window_ms: float
    hop_ms: float  # from one row to the next

    @classmethod
    def of(
        cls,
        name: Name,
        kind: Kind,
        sample_rate: int,
        taps: Iterable[str],
        window_ms: float | None = None,
        hop_ms: float | None = None,
    ) -> Output:
        """An output of a model with this sample rate.

        `taps` are features of an embedding that the model has; other outputs have their own. None
        stands for the usual window or hop. Raises BadRequest where no window can be like that.
        """
        if (name, kind) not in _USUAL:
            choices = ", ".join(" ".join(pair) for pair in _USUAL)
            raise BadRequest(f"no output {name} {kind}; choose one of {choices}")
        usual = _USUAL[name, kind]
        window = usual.window_ms if window_ms is None else window_ms
        hop = usual.hop_ms if hop_ms is None else hop_ms
        plan = usual.plan(sample_rate, window, hop)
        return cls(name, kind, plan, usual.taps or tuple(taps), sample_rate, window, hop)

    def key(self) -> dict[str, Any]:
        """All of this output that decides the values, by its name; plain JSON."""
        return {
            "output": self.name,
            "kind": self.kind,
            "taps": list(self.taps),
            "window_ms": float(self.window_ms),
            "hop_ms": float(self.hop_ms),
            "sample_rate": self.sample_rate,
        }

    def whole(self, samples: int) -> bool:
        """Whether a clip of so many samples goes through in one piece."""
        return self.plan.whole_clips and samples <= self.plan.window

    def width(self, samples: int) -> int:
        """Samples of each window of a clip of so many samples."""
        return samples if self.whole(samples) else self.plan.window

    def n_windows(self, samples: int) -> int:
        """How many windows the network computes for a clip of so many samples."""
        return self.plan.n_windows(samples)

    def n_rows(self, samples: int) -> int:
        """T: how many windows, or frames, a clip of so many samples has."""
        if self.name == "events":
            return n_frames(samples, self.sample_rate)
        return self.n_windows(samples)

    def shape(
        self, samples: int, tap_sizes: Mapping[str, int], labels: int
    ) -> tuple[int] | tuple[int, int]:
        """Shape of the values for a clip of so many samples: [D], or [T, D] with timestamps."""
        size = sum(tap_sizes.get(tap, labels) for tap in self.taps)
        return (size,) if self.kind == "scene" else (self.n_rows(samples), size)

    def centres_ms(
        self, samples: int, first: int = 0, count: int | None = None
    ) -> NDArray[np.float64]:
        """Milliseconds of the centres of the rows [T], or of `count` of them from `first` on.

        Exact at any length: a row's number times the hop. The one window of a clip that goes
        through whole is centred in the clip's middle.
        """
        count = self.n_rows(samples) - first if count is None else count
        if self.name == "events":
            return frame_ms(count, first)
        if self.whole(samples):
            return np.array([samples / 2 * 1000 / self.sample_rate], np.float64)
        return np.arange(first, first + count, dtype=np.float64) * self.hop_ms

    def rows(self, features: Array, first: int, samples: int) -> Array:
        """Features of consecutive windows [..., n, D], or [..., n, t, D] of frames, as rows.

        `first` rows went before, and the clip has `samples` samples as far as it is known: frames
        after its end are left out.
        """
        if self.name != "events":
            return features
        frames = features.reshape((*features.shape[:-3], -1, features.shape[-1]))
        return frames[..., : self.n_rows(samples) - first, :]

    def pieces(self, groups: Iterable[Tensor], clock: Clock[Tensor]) -> Iterator[Timestamps]:
        """Rows and their centres as they come, from features [B, n, D] of what the clock reads."""
        first = 0
        for features in groups:
            rows = self.rows(features, first, clock.samples)
            ms = torch.from_numpy(self.centres_ms(clock.samples, first, rows.shape[1]))
            yield Timestamps(rows, ms.expand(len(rows), -1).to(rows.device))
            first += rows.shape[1]

    def collector(self, samples: int) -> Mean[NDArray[np.float32]] | Rows:
        """What takes the features of one clip of so many samples and gives the answer's values."""
        return Mean() if self.kind == "scene" else Rows(self, samples)


class Mean(Generic[Array]):
    """The mean over the windows of each clip, added up in float64."""

    def __init__(self) -> None:
        self._total: Any = 0.0
        self._windows = 0

    def push(self, features: Array) -> None:
        """Take the features of the next windows, [..., n, D]."""
        self._windows += features.shape[-2]
        if isinstance(features, Tensor):
            self._total = self._total + features.double().sum(-2)
        else:
            self._total = self._total + features.sum(-2, dtype=np.float64)

    def finish(self) -> Array:
        """The mean, float32 [..., D]."""
        mean = self._total / self._windows
        single: Any = mean.float() if isinstance(mean, Tensor) else mean.astype(np.float32)
        values: Array = single
        return values


class Rows:
    """Every row of one clip whose length is known."""

    def __init__(self, output: Output, samples: int) -> None:
        self._output = output
        self._samples = samples
        self._values: NDArray[np.float32] | None = None
        self._count = 0

    def push(self, features: NDArray[np.float32]) -> None:
        """Take the features of the next windows, [n, D] or [n, t, D]."""
        if self._values is None:  # all at once: to join parts would take their memory again
            shape = self._output.n_rows(self._samples), features.shape[-1]
            self._values = np.empty(shape, np.float32)
        rows = self._output.rows(features, self._count, self._samples)
        self._values[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def finish(self) -> NDArray[np.float32]:
        """All rows, float32 [T, D]."""
        assert self._values is not None
        assert self._count == len(self._values)
        return self._values


class _Usual(NamedTuple):
    """What an output is like unless the caller says otherwise; `taps` where it has its own."""

    plan: Callable[[int, float, float], Plan]
    window_ms: float
    hop_ms: float
    taps: tuple[str, ...] = ()


def _chunks(sample_rate: int, window_ms: float, hop_ms: float) -> Plan:
    """Consecutive windows of the length that event detectors were trained on, and of no other."""
    if (window_ms, hop_ms) != (SCENE_WINDOW_MS, FRAME_MS):
        raise BadRequest(
            f"events have windows of {SCENE_WINDOW_MS:g} ms and frames of {FRAME_MS} ms, "
            f"not {window_ms:g} and {hop_ms:g}; leave window_ms and hop_ms out"
        )
    return chunk_plan(sample_rate)


# Tags of short windows mean little: those with timestamps are of the scene's windows.
_USUAL: Final[Mapping[tuple[Name, Kind], _Usual]] = MappingProxyType(
    {
        ("embedding", "scene"): _Usual(scene_plan, SCENE_WINDOW_MS, SCENE_HOP_MS),
        ("embedding", "timestamps"): _Usual(timestamp_plan, TIMESTAMP_WINDOW_MS, TIMESTAMP_HOP_MS),
        ("tags", "scene"): _Usual(scene_plan, SCENE_WINDOW_MS, SCENE_HOP_MS, (TAGS,)),
        ("tags", "timestamps"): _Usual(scene_plan, SCENE_WINDOW_MS, SCENE_HOP_MS, (TAGS,)),
        ("events", "timestamps"): _Usual(_chunks, SCENE_WINDOW_MS, float(FRAME_MS), (EVENTS,)),
    }
)
