"""The questions that a model answers, by their names; each is an `Output`.

Axes: B clips, S samples, T timestamps or frames, n windows, D values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypedDict, Unpack, overload

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
from embedder.events.finder import Event, EventRules, Threshold
from embedder.events.frames import find_events
from embedder.outputs import Timestamps
from embedder.streams import Streams, output_of
from embedder.waveforms import Audio, AudioBlocks, Clip, Clips, Waveforms, in_order, is_one, read

TOP: Final = 5

Tag = tuple[str, float]  # label and probability


class Windows(TypedDict, total=False):
    """Window and hop, in milliseconds."""

    window_ms: float
    hop_ms: float


class Rules(TypedDict, total=False):
    """What makes an event, as `EventRules.of` explains."""

    threshold: Threshold
    median: int
    min_duration_ms: float
    merge_gap_ms: float


class WholeClips(Streams):
    """A model's answers about clips.

    Every `audio` is one of these, and is mono in the end:

    - a path, bytes or a binary file, of any rate and number of channels: one clip;
    - floats in [-1, 1] as an array or tensor, [S] for one clip or [B, S] for B clips of one
      length, at the model's `sample_rate`. A stereo recording [2, S] would count as two clips:
      pass its mean, `x.mean(0)`;
    - the same with `sample_rate`, the rate of the array, from which it is resampled as a file
      would be. Then [B, S] is refused, since decoders give channels in this shape: pass
      `list(x)` for clips, `x.mean(0)` for channels;
    - a list of any of these, one clip each, of any length: answered in its order. Clips of one
      length are computed together;
    - `AudioBlocks(iterator)`: clips that arrive in consecutive blocks [B, s], answered in memory
      that does not grow with their length, rows apart.

    A method `X_stream(blocks)` answers as `X(AudioBlocks(blocks))`; where the answer is rows, it
    gives them as they come.

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
        output = output_of(self, "embedding", "scene", window_ms, hop_ms)
        return self.answer(audio, output, sample_rate=sample_rate)

    def tags(self, audio: Audio, *, sample_rate: int | None = None) -> Tensor:
        """Probability of each label: [B, len(labels)].

        Labels are independent; clips over 10 s give the mean over the scene windows.
        """
        return self.answer(audio, output_of(self, "tags"), sample_rate=sample_rate)

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
        output = output_of(self, "embedding", "timestamps", window_ms, hop_ms)
        return self.rows(audio, output, sample_rate=sample_rate)

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
        output = output_of(self, "tags", "timestamps", window_ms, hop_ms)
        return self.rows(audio, output, sample_rate=sample_rate)

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
        output = output_of(self, "events", "timestamps")  # refused before any audio is decoded
        rules = EventRules.of(self.labels, threshold, median, min_duration_ms, merge_gap_ms)

        def find(blocks: Iterable[Waveforms]) -> list[list[Event]]:
            clock = self.clock(blocks)
            pieces = self.pieces_of(clock, output)
            return find_events(pieces, rules, lambda: clock.samples / self.sample_rate)

        return in_order(read(audio, self.sample_rate, sample_rate), find)

    @overload
    def frame_probabilities(
        self, audio: Clips, *, sample_rate: int | None = ...
    ) -> list[Timestamps]: ...
    @overload
    def frame_probabilities(self, audio: Clip, *, sample_rate: int | None = ...) -> Timestamps: ...
    def frame_probabilities(
        self, audio: Audio, *, sample_rate: int | None = None
    ) -> Timestamps | list[Timestamps]:
        """Each label's probability every 40 ms: ([B, T, len(labels)], [B, T] ms).

        Not filtered. Consecutive chunks of 10 s, the last one filled with zeros and then cut:
        T = ceil(S / 40 ms).
        """
        output = output_of(self, "events", "timestamps")
        return self.rows(audio, output, sample_rate=sample_rate)

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
        output = output_of(self, "embedding", taps=chosen)
        vectors = self.answer(audio, output, sample_rate=sample_rate)
        return dict(zip(chosen, torch.split(vectors, sizes, -1), strict=True))

    def scene_stream(self, blocks: Iterable[Waveforms], **windows: Unpack[Windows]) -> Tensor:
        """`scene` of audio that arrives in consecutive blocks [B, s]."""
        return self.scene(AudioBlocks(blocks), **windows)

    def tags_stream(self, blocks: Iterable[Waveforms]) -> Tensor:
        """`tags` of audio that arrives in consecutive blocks [B, s]."""
        return self.tags(AudioBlocks(blocks))

    def events_stream(
        self, blocks: Iterable[Waveforms], **rules: Unpack[Rules]
    ) -> list[list[Event]]:
        """`events` of audio that arrives in consecutive blocks [B, s]."""
        return self.events(AudioBlocks(blocks), **rules)

    def timestamps_stream(
        self, blocks: Iterable[Waveforms], **windows: Unpack[Windows]
    ) -> Iterator[Timestamps]:
        """`timestamps` piece by piece, of audio that arrives in blocks [B, s]."""
        return self.pieces(blocks, output_of(self, "embedding", "timestamps", **windows))

    def window_tags_stream(
        self, blocks: Iterable[Waveforms], **windows: Unpack[Windows]
    ) -> Iterator[Timestamps]:
        """`window_tags` piece by piece, of audio that arrives in blocks [B, s]."""
        return self.pieces(blocks, output_of(self, "tags", "timestamps", **windows))

    def frame_probabilities_stream(self, blocks: Iterable[Waveforms]) -> Iterator[Timestamps]:
        """`frame_probabilities` piece by piece, of audio that arrives in blocks [B, s]."""
        return self.pieces(blocks, output_of(self, "events", "timestamps"))
