"""Cutting clips into windows: whole clips, scene windows, timestamp windows, in bounded memory.

Axes: B clips of equal length, S samples, n windows of one batch, W samples a window.
A clip in memory is a stream of one block, so that both are cut by the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from embedder.defaults import SCENE_HOP_MS, SCENE_WINDOW_MS, TIMESTAMP_HOP_MS, TIMESTAMP_WINDOW_MS
from embedder.errors import BadAudio, BadRequest
from embedder.frontend import reflect_pad

# Samples of one network batch: eight windows of 10 s at 32 kHz, or 500 of 160 ms.
BATCH_SAMPLES: Final = 8 * 320_000
# Samples of all clips together that wait for others of their length.
WAITING_SAMPLES: Final = 4 * BATCH_SAMPLES


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Windows of `window` samples centred every `hop` samples from the clip's first sample.

    The clip is mirrored by half a window at both ends, so that windows are centred at 0,
    hop, 2 hop, ... and there are floor(S / hop) + 1 of them. With `whole_clips`, a clip no
    longer than one window goes through unpadded and in one piece (the reference's scene
    embedding).
    """

    window: int
    hop: float
    whole_clips: bool

    def n_windows(self, samples: int) -> int:
        """How many windows a clip of so many samples gives."""
        if self.whole_clips and samples <= self.window:
            return 1
        return int(samples // self.hop) + 1

    def start(self, index: int) -> int:
        """First sample of a window in the padded clip; rounded last, so time never drifts."""
        return round(index * self.hop)


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Consecutive windows of `window` samples; zeros fill the last one (the reference's events)."""

    window: int
    whole_clips: Literal[False] = False

    def n_windows(self, samples: int) -> int:
        """How many windows a clip of so many samples gives."""
        return -(-samples // self.window)


Plan: TypeAlias = WindowPlan | ChunkPlan


def scene_plan(
    sample_rate: int, window_ms: float = SCENE_WINDOW_MS, hop_ms: float = SCENE_HOP_MS
) -> WindowPlan:
    """Clips up to one window go through whole, longer clips as overlapping windows."""
    return _plan(sample_rate, window_ms, hop_ms, whole_clips=True)


def timestamp_plan(
    sample_rate: int, window_ms: float = TIMESTAMP_WINDOW_MS, hop_ms: float = TIMESTAMP_HOP_MS
) -> WindowPlan:
    """Short windows, each around a timestamp."""
    return _plan(sample_rate, window_ms, hop_ms, whole_clips=False)


def chunk_plan(sample_rate: int) -> ChunkPlan:
    """Consecutive windows of 10 s, the length that event detectors were trained on."""
    return ChunkPlan(round(sample_rate * SCENE_WINDOW_MS / 1000))


def _plan(sample_rate: int, window_ms: float, hop_ms: float, whole_clips: bool) -> WindowPlan:
    for name, value in (("window_ms", window_ms), ("hop_ms", hop_ms)):
        if not 1.0 <= value <= 600_000.0:
            raise BadRequest(f"{name} is {value!r}; choose 1 to 600000 milliseconds")
    return WindowPlan(
        window=round(sample_rate * window_ms / 1000),
        hop=sample_rate * hop_ms / 1000,
        whole_clips=whole_clips,
    )


def cut(
    blocks: Iterable[Tensor], plan: Plan, batch_samples: int = BATCH_SAMPLES
) -> Iterator[Tensor]:
    """Cut a stream of blocks into batches of windows, holding about one batch at a time.

    Parameters
    ----------
    blocks : consecutive pieces [B, s] of B equally long clips; s may vary.
    plan : which windows.
    batch_samples : batches hold about so many samples, at least one window a clip.

    Yields
    ------
    Tensor, [B, n, W]: the next n windows of every clip, in order.

    Raises
    ------
    BadAudio : the stream holds no sample.
    """
    stream = iter(blocks)
    if isinstance(plan, ChunkPlan):
        yield from _chunks(stream, plan.window, batch_samples)
        return
    head = _read(stream, plan.window + 1)
    if head is None:
        raise BadAudio("the audio holds no samples; send at least one")
    if plan.whole_clips and head.shape[1] <= plan.window:
        yield head[:, None]
        return
    half, rest = plan.window // 2, plan.window - plan.window // 2
    # `padded` holds the mirrored clip from sample `origin` on.
    origin, index, total = 0, 0, head.shape[1]
    ended = total <= plan.window
    padded = reflect_pad(head, rest)[:, rest - half :] if ended else _mirror_start(head, half)
    while True:
        last = plan.n_windows(total) if ended else None
        n_ready = _ready(plan, index, origin + padded.shape[1], last)
        step = max(1, batch_samples // (plan.window * padded.shape[0]))
        for first in range(index, index + n_ready, step):
            count = min(step, index + n_ready - first)
            yield _windows(padded, [plan.start(first + i) - origin for i in range(count)], plan)
        index += n_ready
        if ended:
            return
        # Keep what later windows and the mirror at the end still need.
        keep_from = min(plan.start(index), origin + padded.shape[1] - rest - 1)
        padded, origin = padded[:, max(0, keep_from - origin) :], max(origin, keep_from)
        block = next(stream, None)
        if block is None:
            ended = True
            tail = padded[:, -rest - 1 : -1].flip(1)
            padded = torch.cat([padded, tail], 1)
        else:
            total += block.shape[1]
            padded = torch.cat([padded, block], 1)


def _chunks(stream: Iterator[Tensor], window: int, batch_samples: int) -> Iterator[Tensor]:
    """Batches [B, n, W] of consecutive windows, the last one filled with zeros."""
    held = _read(stream, 1)
    if held is None:
        raise BadAudio("the audio holds no samples; send at least one")
    step = window * max(1, batch_samples // (window * len(held)))
    while True:
        while held.shape[1] >= step:
            yield held[:, :step].reshape(len(held), -1, window)
            held = held[:, step:]
        more = _read(stream, step - held.shape[1])
        if more is None:
            break
        held = torch.cat([held, more], 1)
    if held.shape[1]:
        padded = functional.pad(held, (0, -held.shape[1] % window))
        yield padded.reshape(len(held), -1, window)


def _read(stream: Iterator[Tensor], samples: int) -> Tensor | None:
    """Join the next blocks: at least so many samples unless the stream ends; None at its end."""
    parts: list[Tensor] = []
    have = 0
    while have < samples and (block := next(stream, None)) is not None:
        parts.append(block)
        have += block.shape[1]
    if not have:
        return None
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _mirror_start(head: Tensor, pad: int) -> Tensor:
    return torch.cat([head[:, 1 : pad + 1].flip(1), head], 1)


def _ready(plan: WindowPlan, index: int, have: int, last: int | None) -> int:
    """The number of windows from `index` on that lie within the first `have` padded samples."""
    ready = int((have - plan.window) // plan.hop) + 1 if have >= plan.window else 0
    while plan.start(ready) + plan.window <= have:
        ready += 1
    while ready and plan.start(ready - 1) + plan.window > have:
        ready -= 1
    return max(0, (ready if last is None else min(ready, last)) - index)


def _windows(padded: Tensor, starts: list[int], plan: WindowPlan) -> Tensor:
    """[B, P] -> [B, n, W]; a view where the starts are evenly spaced."""
    hop = starts[1] - starts[0] if len(starts) > 1 else 1
    if starts == list(range(starts[0], starts[0] + hop * len(starts), hop)):
        return padded[:, starts[0] :].unfold(1, plan.window, hop)[:, : len(starts)]
    return torch.stack([padded[:, start : start + plan.window] for start in starts], 1)
