"""Unlabelled sound as one array of mel-power frames, computed once and mapped into memory.

The front end is linear in power up to its logarithm, so clips can be mixed, filtered and
reverberated as mel power, at a hundredth of the cost of doing it to waveforms.
Axes: N frames of all clips on end, M mel bands, F frames of one clip.
"""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from embedder.audio.decode import load_audio
from embedder.defaults import AUDIO_SUFFIXES
from embedder.errors import BadAudio
from embedder.frontend import SCALE, SHIFT, LogMel, normalise_
from embedder.zoo import MEL_32K, MelConfig
from eval.data.synth import sounds

FRAMES: Final = "frames.npy"
INDEX: Final = "clips.csv"
CHUNK_S: Final = 30  # clips are analysed in chunks, so that memory stays small


@dataclass(frozen=True, slots=True)
class Clip:
    """Where one recording lies in the array. `path` is relative to the parent of its root."""

    path: str
    start: int
    frames: int


def to_power(mel: torch.Tensor, config: MelConfig = MEL_32K) -> torch.Tensor:
    """Normalised log-mel (floor added) back to mel power, same shape."""
    return (mel * SCALE - SHIFT).exp().sub(config.floor).clamp(min=0.0)


def to_log_mel(power: torch.Tensor, config: MelConfig = MEL_32K) -> torch.Tensor:
    """Mel power to what the networks take, same shape: the inverse of `to_power`."""
    return normalise_(power.clone(), config)


def clip_power(wave: NDArray[np.float32], frontend: LogMel) -> NDArray[np.float16]:
    """Waveform [S] in about [-1, 1] -> fourth root of mel power [F, M]; halves hold it to 0.2 %."""
    step = CHUNK_S * frontend.config.sample_rate
    parts: list[NDArray[np.float16]] = []
    for begin in range(0, max(1, len(wave)), step):
        chunk = torch.from_numpy(wave[begin : begin + step])
        if len(chunk) >= frontend.config.n_fft or not parts:
            with torch.inference_mode():
                parts.append(to_power(frontend(chunk[None])[0]).T.pow(0.25).half().numpy())
    return np.concatenate(parts)


class Corpus:
    """Clips of mel power, mapped from disk; `frames` is float16 [N, M], its fourth root."""

    def __init__(self, frames: NDArray[np.float16], clips: Sequence[Clip]) -> None:
        self.frames = frames
        self.clips = tuple(clips)

    @classmethod
    def open(cls, folder: Path, *, in_memory: bool = False) -> Corpus:
        """What `build` wrote; mapped from disk unless it is to be held in memory."""
        with (folder / INDEX).open(newline="") as file:
            clips = [
                Clip(row["path"], int(row["start"]), int(row["frames"]))
                for row in csv.DictReader(file)
            ]
        return cls(np.load(folder / FRAMES, mmap_mode=None if in_memory else "r"), clips)

    def where(self, only: Iterable[str] = ("*",), but: Iterable[str] = ()) -> Corpus:
        """The clips whose path matches one of `only` and none of `but` (shell patterns)."""
        keep, drop = tuple(only), tuple(but)
        return Corpus(
            self.frames,
            [
                clip
                for clip in self.clips
                if any(fnmatch.fnmatch(clip.path, pattern) for pattern in keep)
                and not any(fnmatch.fnmatch(clip.path, pattern) for pattern in drop)
            ],
        )

    def power(self, clip: Clip, begin: int = 0, frames: int | None = None) -> NDArray[np.float32]:
        """Mel power [F, M] of a clip or a part of it."""
        stop = clip.frames if frames is None else min(clip.frames, begin + frames)
        root = self.frames[clip.start + begin : clip.start + stop].astype(np.float32)
        root *= root
        root *= root
        return root

    def __len__(self) -> int:
        return len(self.clips)


def audio_files(roots: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """(name, path) of every sound below the roots, in order; names begin with the root's own."""
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                yield f"{root.name}/{path.relative_to(root).as_posix()}", path


def build(roots: Sequence[Path], folder: Path, workers: int = 2, synthetic: int = 0) -> Corpus:
    """Decode everything below `roots`, add so many made sounds, and write it to `folder`.

    Unreadable files are left out.
    """
    named = list(audio_files(roots))
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parts = list(pool.map(_file_power, (path for _, path in named), chunksize=16))
    found = [(name, part) for (name, _), part in zip(named, parts, strict=True) if part is not None]
    frontend = LogMel(MEL_32K)
    found += [(name, clip_power(wave, frontend)) for name, wave in sounds(synthetic)]
    return write(found, folder)


def write(parts: Iterable[tuple[str, NDArray[np.float16]]], folder: Path) -> Corpus:
    """Named arrays [F, M] -> a corpus on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    clips, arrays, start = [], [], 0
    for name, part in parts:
        clips.append(Clip(name, start, len(part)))
        arrays.append(part)
        start += len(part)
    np.save(folder / FRAMES, np.concatenate(arrays))
    with (folder / INDEX).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Clip)])
        writer.writerows(map(astuple, clips))
    return Corpus.open(folder)


def _file_power(path: Path) -> NDArray[np.float16] | None:
    try:
        wave = load_audio(path, MEL_32K.sample_rate)
    except BadAudio:
        return None
    return clip_power(wave, LogMel(MEL_32K))
