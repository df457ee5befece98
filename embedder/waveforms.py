"""What a caller may give as audio, checked at the door; nothing behind it checks again.

    path, bytes, file ── embedder.audio.decode ──┐
    array [S] or [B, S] ─────────────────────────┼── blocks [B, s] of clips of one length
    list of any of these, by length ─────────────┤
    `AudioBlocks` of clips that arrive ──────────┘

Axes: B clips, S samples, s samples of a block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeGuard, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.audio.decode import AudioSource, check_peak, load_audio, resample, stream_audio
from embedder.audio.libav import MAX_RATE, MIN_RATE
from embedder.errors import BadAudio, BadRequest
from embedder.windows import BATCH_SAMPLES, WAITING_SAMPLES

Waveforms: TypeAlias = Tensor | NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class AudioBlocks:
    """Audio that arrives in consecutive blocks [B, s] of B clips, at the model's sample rate.

    `embedder.stream_audio` gives such blocks of a file. An iterator alone could also be one of
    clips; this says that it is not.
    """

    blocks: Iterable[Waveforms]


Clip: TypeAlias = Waveforms | AudioSource | AudioBlocks
Clips: TypeAlias = list[Any] | tuple[Any, ...]  # of Clip, of any length and kind
Audio: TypeAlias = Clip | Clips

T = TypeVar("T")
Block = TypeVar("Block", Tensor, NDArray[np.float32])

GIVE: Final = (
    "give a path, bytes, a binary file, floats [samples] or [clips, samples], or a list of these"
)
TO_FLOATS: Final = {"int32": "int32 / 2**31", "uint8": "uint8 / 128.0 - 1"}
# So many clips below a millisecond are not clips, but the frames of a recording's channels.
MANY_CLIPS: Final = 100


class Batch(NamedTuple):
    """Clips of one length as consecutive blocks [B, s], and their numbers among all clips."""

    numbers: Sequence[int]
    blocks: Iterable[Waveforms]


class Clock(Iterator[Block]):
    """Blocks [..., s] as they come, and how many samples they have had."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks: Iterator[Block] = iter(blocks)
        self.samples = 0

    def __next__(self) -> Block:
        block = next(self._blocks)
        self.samples += block.shape[-1]
        return block


class ByLength(Generic[T]):
    """Clips that wait for others of their length, since those of one length run together.

    Memory is bounded: few clips of a length do not wait until the end.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[T]] = {}  # by length in samples
        self._samples = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, clip: T, samples: int) -> list[list[T]]:
        """Let a clip of so many samples wait; the groups that need not wait any longer."""
        self._waiting.setdefault(samples, []).append(clip)
        self._samples += samples
        ready = []
        if len(self._waiting[samples]) * samples >= BATCH_SAMPLES:
            ready.append(self._taken(samples))
        while self._samples >= WAITING_SAMPLES:
            ready.append(self._taken(max(self._waiting, key=self._size)))
        return ready

    def rest(self) -> list[list[T]]:
        """All that still waits."""
        return [self._taken(samples) for samples in list(self._waiting)]

    def _size(self, samples: int) -> int:
        return samples * len(self._waiting[samples])

    def _taken(self, samples: int) -> list[T]:
        self._samples -= self._size(samples)
        return self._waiting.pop(samples)


def is_many(audio: Audio) -> bool:
    """Whether this is a list of clips, not one clip or an array of clips."""
    return isinstance(audio, list | tuple) and not (audio and isinstance(audio[0], Real))


def is_one(audio: Audio) -> bool:
    """Whether this is one clip, not several or an array of them."""
    if is_many(audio) or isinstance(audio, AudioBlocks):
        return False
    return is_source(audio) or np.ndim(audio) == 1  # type: ignore[arg-type]


def is_source(audio: object) -> TypeGuard[AudioSource]:
    """Whether `embedder.audio.decode` is to read this; a text file is for it to refuse."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview)
    return isinstance(audio, kinds) or hasattr(audio, "read")


def read(audio: Audio, rate: int, sample_rate: int | None = None) -> Iterator[Batch]:
    """Whatever a caller gives, as batches of clips at `rate`; arrays have the rate `sample_rate`.

    Raises
    ------
    BadAudio : this is no audio, or an array whose axes can only be, or may be, mistaken.
    BadRequest : no such sample rate.
    """
    if sample_rate is not None:
        _check_rate(sample_rate)
    if isinstance(audio, list | tuple) and is_many(audio):
        yield from _by_length(_clips(audio, rate, sample_rate))
    elif isinstance(audio, AudioBlocks):
        yield _batch_of(audio.blocks)
    elif is_source(audio):
        yield Batch((0,), stream_audio(audio, rate))
    else:
        wave = as_wave(audio)
        if sample_rate is not None:
            wave = _at_rate(wave, sample_rate, rate)
        yield Batch(range(len(wave)), [wave])


def in_order(
    batches: Iterable[Batch], run: Callable[[Iterable[Waveforms]], Iterable[T]]
) -> list[T]:
    """Run each batch, and give the answers of all clips in the order of their numbers."""
    answers: dict[int, T] = {}
    for batch in batches:
        answers.update(zip(batch.numbers, run(batch.blocks), strict=True))
    return [answers[number] for number in sorted(answers)]


def checked(blocks: Iterable[Waveforms], rate: int) -> Iterator[Tensor]:
    """Consecutive blocks [B, s] at `rate`, checked: float32, finite, and always of B clips."""
    clips = 0
    for block in _no_array(blocks):
        wave = as_wave(block)
        if not clips:
            _check_axes(wave, rate)
        elif len(wave) != clips:
            raise BadAudio(f"a block of {len(wave)} clips after one of {clips}; keep their number")
        clips = len(wave)
        check_peak(max(abs(float(value)) for value in wave.aminmax()))
        yield wave


def as_wave(audio: object) -> Tensor:
    """An array or a tensor of floats [S] or [B, S] as float32 [B, S]."""
    wave = audio.detach() if isinstance(audio, Tensor) else _array(audio)
    if wave.ndim == 1:
        wave = wave[None]
    if wave.ndim != 2 or wave.numel() == 0:
        raise BadAudio(
            f"waveforms have shape {tuple(wave.shape)}; pass mono [clips, samples], not empty"
        )
    if not wave.is_floating_point():
        kind = str(wave.dtype).removeprefix("torch.")
        remedy = TO_FLOATS.get(kind, "int16 / 32768")
        raise BadAudio(f"waveforms are {kind}; pass floats in [-1, 1] ({remedy})")
    return wave.float()


def _array(audio: object) -> Tensor:
    try:
        array = np.asarray(audio)
    except ValueError as error:  # lists of numbers of different lengths
        raise BadAudio(f"cannot embed this {type(audio).__name__}; {GIVE}") from error
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinite values are refused later
            # torch takes neither other byte orders nor memory that must not be written to.
            array = np.require(array, np.float32, ["C", "W"])
    elif array.dtype.kind not in "iub":
        raise BadAudio(f"cannot embed this {type(audio).__name__}; {GIVE}")
    return torch.from_numpy(array)


def _check_axes(wave: Tensor, rate: int) -> None:
    clips, samples = wave.shape
    if clips >= MANY_CLIPS and samples * 1000 < rate:
        raise BadAudio(
            f"waveforms have shape {(clips, samples)}: {clips} clips of {samples} samples; "
            "if this is [samples, channels], pass x.mean(1)"
        )


def _check_rate(sample_rate: float) -> None:
    if not (MIN_RATE <= sample_rate <= MAX_RATE and sample_rate == int(sample_rate)):
        raise BadRequest(
            f"sample_rate is {sample_rate!r}; give the array's rate, {MIN_RATE} to {MAX_RATE} Hz"
        )


def _at_rate(wave: Tensor, sample_rate: int, rate: int) -> Tensor:
    """One clip [1, S] at another rate."""
    if len(wave) != 1:
        clips, samples = wave.shape
        mono = "x.mean(0)" if clips <= samples else "x.mean(1)"
        raise BadAudio(
            f"shape {(clips, samples)} may be clips or channels; pass list(x) for {clips} clips, "
            f"or {mono} for the mean of a recording's channels"
        )
    if sample_rate == rate:
        return wave
    resampled = resample(wave[0].cpu().numpy(), int(sample_rate), rate)
    if not resampled.size:
        raise BadAudio(f"{wave.shape[1]} samples at {sample_rate} Hz are none at {rate} Hz")
    return torch.from_numpy(resampled)[None]


def _clips(audio: Clips, rate: int, sample_rate: int | None) -> Iterator[Tensor]:
    """Each clip of a list as [1, S]; an error says which of them is at fault."""
    if not audio:
        raise BadAudio("the list holds no clips; give at least one")

    for number, clip in enumerate(audio):
        yield _numbered_clip(number, clip, rate, sample_rate)


def _numbered_clip(number: int, clip: object, rate: int, sample_rate: int | None) -> Tensor:
    try:
        return _clip(clip, rate, sample_rate)
    except BadAudio as error:
        raise type(error)(f"clip {number} of the list: {error}") from error


def _clip(clip: object, rate: int, sample_rate: int | None) -> Tensor:
    if is_source(clip):
        return torch.from_numpy(load_audio(clip, rate))[None]
    if isinstance(clip, Real):
        raise BadAudio(f"it is {clip!r}; give a rate as sample_rate={clip!r}")
    wave = as_wave(clip)
    if len(wave) != 1:
        mono = "x.mean(0)" if len(wave) <= wave.shape[1] else "x.mean(1)"
        raise BadAudio(f"it has shape {tuple(wave.shape)}; pass {mono}, or list(x) on its own")
    return _at_rate(wave, sample_rate or rate, rate)


def _by_length(clips: Iterable[Tensor]) -> Iterator[Batch]:
    """Clips of one length together."""
    waiting: ByLength[tuple[int, Tensor]] = ByLength()
    for number, clip in enumerate(clips):
        yield from map(_stacked, waiting.add((number, clip), clip.shape[1]))
    yield from map(_stacked, waiting.rest())


def _stacked(clips: Sequence[tuple[int, Tensor]]) -> Batch:
    numbers, waves = zip(*clips, strict=True)
    return Batch(numbers, [torch.cat([wave.to(waves[0].device) for wave in waves])])


def _batch_of(blocks: Iterable[Waveforms]) -> Batch:
    """The clips of consecutive blocks; the first block says how many they are."""
    stream = iter(_no_array(blocks))
    first = next(stream, None)
    if first is None:
        raise BadAudio("the audio holds no samples; send at least one")
    return Batch(range(len(as_wave(first))), chain([first], stream))


def _no_array(blocks: Iterable[Waveforms]) -> Iterable[Waveforms]:
    if isinstance(blocks, Tensor | np.ndarray):
        raise BadAudio(f"blocks are an array of shape {tuple(blocks.shape)}; give a list of arrays")
    return blocks
