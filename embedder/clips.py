"""What can be asked of whole clips: each question is that of a stream, asked of one clip's blocks.

Axes: B clips, S samples, T timestamps or frames, n windows, D values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar, overload

import torch
from torch import Tensor

from embedder.audio.decode import AudioSource
from embedder.defaults import (
    MEDIAN,
    SCENE_HOP_MS,
    SCENE_WINDOW_MS,
    THRESHOLD,
    TIMESTAMP_HOP_MS,
    TIMESTAMP_WINDOW_MS,
)
from embedder.errors import BadRequest
from embedder.events.finder import Event, Threshold
from embedder.events.frames import FrameProbabilities
from embedder.streams import Streams, Timestamps
from embedder.waveforms import Audio, Clip, Clips, Waveforms, in_order, is_many, is_one, read

TOP: Final = 5

Tag = tuple[str, float]  # label and probability


Timed = TypeVar("Timed", Timestamps, FrameProbabilities)


class WholeClips(Streams):
    """A model's answers about clips that are there in full.

    Every `audio` is one of these, and is mono in the end:

    - a path, bytes or a binary file, of any rate and number of channels: one clip;
    - floats in [-1, 1] as an array or tensor, [S] for one clip or [B, S] for B clips of one
      length, at the model's `sample_rate`. A stereo recording [2, S] would count as two clips:
      pass its mean, `x.mean(0)`;
    - the same with `sample_rate`, the rate of the array, from which it is resampled as a file
      would be. Then [B, S] is refused, since decoders give channels in this shape: pass
      `list(x)` for clips, `x.mean(0)` for channels;
    - a list of any of these, one clip each, of any length: answered in its order. Clips of one
      length are computed together.

    Answers of fixed size are stacked, [B, D]. Of those whose size depends on the length, a list
    of clips gets a list, with B = 1 in each. BadAudio says what is wrong with an `audio`.
    """

    def scene(
        self,
        audio: Audio,
        *,
        sample_rate: int | None = None,
        window_ms: float = SCENE_WINDOW_MS,
        hop_ms: float = SCENE_HOP_MS,
    ) -> Tensor:
        """One vector a clip: float32 [B, D].

        Clips up to one window go through in one piece; longer ones are the mean over windows
        (arXiv 2303.01879, section III).
        """
        run = partial(self.scene_stream, window_ms=window_ms, hop_ms=hop_ms)
        return self._stacked(audio, sample_rate, run)

    def tags(self, audio: Audio, *, sample_rate: int | None = None) -> Tensor:
        """Probability of each label: [B, len(labels)].

        Labels are independent; clips over 10 s give the mean over the scene windows.
        """
        return self._stacked(audio, sample_rate, self.tags_stream)

    @overload
    def top_tags(
        self, audio: Clips, count: int = ..., *, sample_rate: int | None = ...
    ) -> list[list[Tag]]: ...
    @overload
    def top_tags(
        self, audio: AudioSource, count: int = ..., *, sample_rate: int | None = ...
    ) -> list[Tag]: ...
    @overload
    def top_tags(
        self, audio: Waveforms, count: int = ..., *, sample_rate: int | None = ...
    ) -> list[Any]: ...
    def top_tags(
        self, audio: Audio, count: int = TOP, *, sample_rate: int | None = None
    ) -> list[Any]:
        """The `count` most probable labels as pairs (label, probability), the best first.

        One clip gives a list of pairs; a list of clips, or an array [B, S], a list of these.
        """
        if count < 1:
            raise BadRequest(f"count is {count!r}; ask for one label or more")
        scores = self.tags(audio, sample_rate=sample_rate)
        best, order = scores.sort(dim=1, descending=True, stable=True)
        rows = zip(best[:, :count].tolist(), order[:, :count].tolist(), strict=True)
        tags = [
            [(self.labels[index], score) for score, index in zip(*row, strict=True)] for row in rows
        ]
        return tags[0] if is_one(audio) else tags

    @overload
    def timestamps(
        self,
        audio: Clips,
        *,
        sample_rate: int | None = ...,
        window_ms: float = ...,
        hop_ms: float = ...,
    ) -> list[Timestamps]: ...
    @overload
    def timestamps(
        self,
        audio: Clip,
        *,
        sample_rate: int | None = ...,
        window_ms: float = ...,
        hop_ms: float = ...,
    ) -> Timestamps: ...
    def timestamps(
        self,
        audio: Audio,
        *,
        sample_rate: int | None = None,
        window_ms: float = TIMESTAMP_WINDOW_MS,
        hop_ms: float = TIMESTAMP_HOP_MS,
    ) -> Timestamps | list[Timestamps]:
        """A vector every `hop_ms`: ([B, T, D], [B, T] ms), T = floor(S / hop) + 1.

        Each comes from the window of `window_ms` centred there; the clip is mirrored at its ends.
        """
        run = partial(self.timestamps_stream, window_ms=window_ms, hop_ms=hop_ms)
        return self._timed(audio, sample_rate, run)

    @overload
    def window_tags(
        self,
        audio: Clips,
        *,
        sample_rate: int | None = ...,
        window_ms: float = ...,
        hop_ms: float = ...,
    ) -> list[Timestamps]: ...
    @overload
    def window_tags(
        self,
        audio: Clip,
        *,
        sample_rate: int | None = ...,
        window_ms: float = ...,
        hop_ms: float = ...,
    ) -> Timestamps: ...
    def window_tags(
        self,
        audio: Audio,
        *,
        sample_rate: int | None = None,
        window_ms: float = SCENE_WINDOW_MS,
        hop_ms: float = SCENE_HOP_MS,
    ) -> Timestamps | list[Timestamps]:
        """Probabilities of every scene window: ([B, n, len(labels)], [B, n] centres in ms).

        The one window of a clip that goes through whole is centred in the clip's middle.
        """
        run = partial(self.window_tags_stream, window_ms=window_ms, hop_ms=hop_ms)
        return self._timed(audio, sample_rate, run)

    def events(
        self,
        audio: Audio,
        *,
        sample_rate: int | None = None,
        threshold: Threshold = THRESHOLD,
        median: int = MEDIAN,
        min_duration_ms: float = 0.0,
        merge_gap_ms: float = 0.0,
    ) -> list[list[Event]]:
        """What sounds when: the events of each clip, by onset.

        Clips of any length; `EventRules.of` explains the options. Raises BadRequest if this model
        has no frame-wise heads.
        """
        run = partial(
            self.events_stream,
            threshold=threshold,
            median=median,
            min_duration_ms=min_duration_ms,
            merge_gap_ms=merge_gap_ms,
        )
        return in_order(read(audio, self.sample_rate, sample_rate), run)

    @overload
    def frame_probabilities(
        self, audio: Clips, *, sample_rate: int | None = ...
    ) -> list[FrameProbabilities]: ...
    @overload
    def frame_probabilities(
        self, audio: Clip, *, sample_rate: int | None = ...
    ) -> FrameProbabilities: ...
    def frame_probabilities(
        self, audio: Audio, *, sample_rate: int | None = None
    ) -> FrameProbabilities | list[FrameProbabilities]:
        """Each label's probability every 40 ms: ([B, T, len(labels)], [B, T] ms).

        Not filtered. Consecutive chunks of 10 s, the last one filled with zeros and then cut:
        T = ceil(S / 40 ms).
        """
        return self._timed(audio, sample_rate, self.frame_probabilities_stream)

    def features(
        self,
        audio: Audio,
        *,
        taps: Sequence[str] | None = None,
        sample_rate: int | None = None,
    ) -> dict[str, Tensor]:
        """Named features of each clip: {tap: [B, tap_sizes[tap]]}; default: every tap."""
        chosen = self.check_taps(self.tap_sizes if taps is None else taps)
        sizes = [self.tap_sizes[tap] for tap in chosen]
        vectors = self._stacked(audio, sample_rate, partial(self._clip_vectors, taps=chosen))
        return dict(zip(chosen, torch.split(vectors, sizes, -1), strict=True))

    def _stacked(
        self,
        audio: Audio,
        sample_rate: int | None,
        run: Callable[[Iterable[Waveforms]], Tensor],
    ) -> Tensor:
        """[B, D], of each clip what `run` makes of it."""
        return torch.stack(in_order(read(audio, self.sample_rate, sample_rate), run))

    def _timed(
        self,
        audio: Audio,
        sample_rate: int | None,
        run: Callable[[Iterable[Waveforms]], Iterable[Timed]],
    ) -> Timed | list[Timed]:
        """The pieces that `run` makes, joined: of clips of one length, or of each of a list."""
        batches = read(audio, self.sample_rate, sample_rate)
        if is_many(audio):
            return in_order(batches, lambda blocks: _clip_by_clip(_joined(run(blocks))))
        return _joined(run(next(batches).blocks))


def _joined(pieces: Iterable[Timed]) -> Timed:
    """Pieces of the same clips, one after the other."""
    parts = list(pieces)
    return type(parts[0])(*(torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)))


def _clip_by_clip(answer: Timed) -> list[Timed]:
    """Each clip's part of an answer, with B = 1."""
    values, ms = answer
    pairs = zip(torch.split(values, 1), torch.split(ms, 1), strict=True)
    return [type(answer)(value, moments) for value, moments in pairs]
