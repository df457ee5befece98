"""What can be asked of a clip, and what is answered.

Axes: n windows, D values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedder.defaults import SCENE_HOP_MS, SCENE_WINDOW_MS, TIMESTAMP_HOP_MS, TIMESTAMP_WINDOW_MS
from embedder.events.frames import check_detects, frame_ms, n_frames
from embedder.model import EVENTS, TAGS
from embedder.windows import Plan, chunk_plan, scene_plan, timestamp_plan
from service.models import Served, WindowModel

Output = Literal["embedding", "tags", "events"]
Kind = Literal["scene", "timestamps"]
CacheState = Literal["hit", "miss", "bypass"]


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of a clip.

    `output` is "embedding", "tags" or "events" (each label's probability in every frame, from
    which events are made); `kind` "scene" (one vector) or "timestamps" (one a window, or a frame).
    None stands for the defaults of the model or of the kind.
    """

    output: Output
    kind: Kind = "scene"
    window_ms: float | None = None
    hop_ms: float | None = None
    taps: tuple[str, ...] | None = None

    def resolved(self, served: Served) -> ResolvedTask:
        """Every default filled in; BadRequest or UnknownTap where that makes no sense."""
        model = served.model
        if self.output == "events":
            check_detects(model.name, model.spec)
            asked = Task("events", "timestamps", taps=(EVENTS,))
            return ResolvedTask(asked, chunk_plan(model.sample_rate))
        # Tags of short windows mean little: theirs are those of the scene embedding.
        short = self.kind == "timestamps" and self.output == "embedding"
        window, hop = (
            (TIMESTAMP_WINDOW_MS, TIMESTAMP_HOP_MS) if short else (SCENE_WINDOW_MS, SCENE_HOP_MS)
        )
        window = window if self.window_ms is None else self.window_ms
        hop = hop if self.hop_ms is None else self.hop_ms
        if self.output == "tags":
            taps: tuple[str, ...] = (TAGS,)
        else:
            taps = model.taps if self.taps is None else model.check_taps(self.taps)
        plan = (timestamp_plan if short else scene_plan)(model.sample_rate, window, hop)
        return ResolvedTask(replace(self, window_ms=window, hop_ms=hop, taps=taps), plan)


@dataclass(frozen=True, slots=True)
class ResolvedTask:
    """A task without gaps, and the windows it means."""

    asked: Task
    plan: Plan

    @property
    def taps(self) -> tuple[str, ...]:
        """Features to join, in this order."""
        return self.asked.taps or ()

    @property
    def hop_ms(self) -> float:
        """Distance of two windows."""
        return self.asked.hop_ms or 0.0

    def whole(self, samples: int) -> bool:
        """Whether a clip goes through in one piece."""
        return self.plan.whole_clips and samples <= self.plan.window

    def width(self, samples: int) -> int:
        """Samples of each window of a clip of so many samples."""
        return samples if self.whole(samples) else self.plan.window

    def centres_ms(self, samples: int, sample_rate: int) -> NDArray[np.float64]:
        """Milliseconds of the centres of windows [n], or of frames [T]."""
        if self.asked.output == "events":
            return frame_ms(n_frames(samples, sample_rate))
        if self.whole(samples):
            return np.array([samples / 2 * 1000 / sample_rate], np.float64)
        return np.arange(self.plan.n_windows(samples), dtype=np.float64) * self.hop_ms

    def shape(self, samples: int, model: WindowModel) -> tuple[int, ...]:
        """Of the answer for a clip of so many samples: [D], [n, D], or [T, N] for events."""
        if self.asked.output == "events":
            return n_frames(samples, model.sample_rate), len(model.labels)
        tags = self.asked.output == "tags"
        width = len(model.labels) if tags else sum(model.tap_sizes[tap] for tap in self.taps)
        return (width,) if self.asked.kind == "scene" else (self.plan.n_windows(samples), width)

    def joined(
        self, values: NDArray[np.float32], samples: int, sample_rate: int
    ) -> NDArray[np.float32]:
        """Rows of windows [n, D], or of windows' frames [n, t, N] as those of the clip [T, N]."""
        if self.asked.output == "events":
            values = values.reshape(-1, values.shape[-1])[: n_frames(samples, sample_rate)]
        return values


@dataclass(frozen=True, slots=True)
class Answer:
    """`values` [D] for a scene, [n, D] for timestamps, centred at `ms` [n].

    For events [T, N]: of T frames, probabilities of N labels.
    """

    served: Served
    task: ResolvedTask
    values: NDArray[np.float32]
    samples: int
    cache: CacheState
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.samples / self.served.model.sample_rate

    @property
    def ms(self) -> NDArray[np.float64]:
        """Centres of the windows."""
        return self.task.centres_ms(self.samples, self.served.model.sample_rate)


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes that a client sent, where the cache has them, and what is to be made of them."""

    data: bytes
    key: str
    served: Served
    task: ResolvedTask
