"""How a model answers: blocks of audio, windows, features, and what an `Output` makes of them.

    audio ─ read ─ blocks ─ checked ─ cut ─ window_features ─ join ─┬─ Mean ─ answer [B, D]
                                                                    └─ pieces ─ rows [B, T, D]

Memory does not grow with the audio, but for rows that are asked for in one piece.

Axes: B clips, s samples of a block, n windows, W samples a window, T rows, D values, t frames of a
window.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias, overload

import torch
from torch import Tensor, nn

from embedder import windows
from embedder.errors import BadRequest, UnknownTap
from embedder.events.frames import check_detects
from embedder.outputs import Kind, Mean, Name, Output, Timestamps
from embedder.waveforms import (
    Audio,
    Clip,
    Clips,
    Clock,
    Waveforms,
    checked,
    in_order,
    is_many,
    read,
)
from embedder.zoo import ModelSpec

# Windows [N, W] and names of features -> {name: [N, size]}.
Run: TypeAlias = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]


class Asked(Protocol):
    """What `output_of` needs of a model."""

    name: str
    spec: ModelSpec
    taps: tuple[str, ...]

    @property
    def sample_rate(self) -> int:
        """Hertz."""

    def check_taps(self, taps: Iterable[str]) -> tuple[str, ...]:
        """These features in this order, or UnknownTap."""


def output_of(
    model: Asked,
    name: Name,
    kind: Kind = "scene",
    window_ms: float | None = None,
    hop_ms: float | None = None,
    taps: Iterable[str] | None = None,
) -> Output:
    """The output of a model; None stands for its taps, or for the usual window or hop.

    Raises
    ------
    BadRequest, UnknownTap : this model has no such output.
    """
    if name == "events":
        check_detects(model.name, model.spec)
    chosen = model.taps if taps is None else model.check_taps(taps)
    return Output.of(name, kind, model.sample_rate, chosen, window_ms, hop_ms)


class Streams(nn.Module):
    """A model that answers any `Output`; `embedder.clips` has the questions by their names."""

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
        return joined(features, taps or self.taps)

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

    def answer(self, audio: Audio, output: Output, *, sample_rate: int | None = None) -> Tensor:
        """The mean over the windows of each clip: [B, D]."""
        batches = read(audio, self.sample_rate, sample_rate)

        def mean(blocks: Iterable[Waveforms]) -> Tensor:
            return self._mean(self.clock(blocks), output, self.window_features)

        return torch.stack(in_order(batches, mean))

    @overload
    def rows(
        self, audio: Clips, output: Output, *, sample_rate: int | None = ...
    ) -> list[Timestamps]: ...
    @overload
    def rows(self, audio: Clip, output: Output, *, sample_rate: int | None = ...) -> Timestamps: ...
    def rows(
        self, audio: Audio, output: Output, *, sample_rate: int | None = None
    ) -> Timestamps | list[Timestamps]:
        """All rows of clips of one length, or of each clip of a list."""
        batches = read(audio, self.sample_rate, sample_rate)
        if is_many(audio):
            return in_order(batches, lambda blocks: _clip_by_clip(self._whole(blocks, output)))
        return self._whole(next(batches).blocks, output)

    def pieces(self, blocks: Iterable[Waveforms], output: Output) -> Iterator[Timestamps]:
        """The rows of clips that arrive in consecutive blocks [B, s], as they come."""
        return self.pieces_of(self.clock(blocks), output)

    def pieces_of(self, clock: Clock[Tensor], output: Output) -> Iterator[Timestamps]:
        """The rows of what a clock reads, for those who ask it how long the clips have been."""
        return output.pieces(_features(clock, output, self.window_features), clock)

    def clock(self, blocks: Iterable[Waveforms]) -> Clock[Tensor]:
        """The blocks, checked and counted as they are read."""
        return Clock(checked(blocks, self.sample_rate))

    def _mean(self, blocks: Iterable[Tensor], output: Output, run: Run) -> Tensor:
        """[B, D] of blocks that are checked."""
        mean: Mean[Tensor] = Mean()
        for features in _features(blocks, output, run):
            mean.push(features)
        return mean.finish()

    def _whole(self, blocks: Iterable[Waveforms], output: Output) -> Timestamps:
        pieces = list(self.pieces(blocks, output))
        vectors, ms = (torch.cat(parts, 1) for parts in zip(*pieces, strict=True))
        return Timestamps(vectors, ms)


def _features(blocks: Iterable[Tensor], output: Output, run: Run) -> Iterator[Tensor]:
    """[B, n, D] of successive groups of windows, and [B, n, t, D] of frames."""
    for group in windows.cut(blocks, output.plan):
        clips, count, width = group.shape
        batches = torch.split(group.flatten(0, 1), max(1, windows.BATCH_SAMPLES // width))
        parts = [joined(run(batch, output.taps), output.taps) for batch in batches]
        vectors = torch.cat(parts) if len(parts) > 1 else parts[0]
        yield vectors.view(clips, count, *vectors.shape[1:])


def joined(features: Mapping[str, Tensor], taps: Sequence[str]) -> Tensor:
    """Named features side by side along the last axis, in this order."""
    return torch.cat([features[tap] for tap in taps], -1)


def _clip_by_clip(answer: Timestamps) -> list[Timestamps]:
    """Each clip's part of an answer, with B = 1."""
    pairs = zip(torch.split(answer.vectors, 1), torch.split(answer.ms, 1), strict=True)
    return [Timestamps(vectors, ms) for vectors, ms in pairs]
