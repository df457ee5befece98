"""Unlabelled sound as one array of mel-power frames, computed once and mapped into memory.

The front end is linear in power up to its logarithm. Clips can therefore be mixed, filtered and
reverberated as mel power, which costs a hundredth of what it costs on waveforms.
Axes: N frames of all clips, one clip after the other; M mel bands; F frames of one clip.
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
CHUNK_S: Final = 30  # seconds analysed at once: a whole long clip would take too much memory


@dataclass(frozen=True, slots=True)
class CorpusClip:
    """One recording: its frames are `start` to `start + frames` of the array.

    `path` begins with the name of the root folder that the file was in.
    """

    path: str
    start: int
    frames: int


def to_power(mel: torch.Tensor, config: MelConfig = MEL_32K) -> torch.Tensor:
    """Turn normalised log-mels back into mel power, same shape: the inverse of `to_log_mel`."""
    return (mel * SCALE - SHIFT).exp().sub(config.floor).clamp(min=0.0)


def to_log_mel(power: torch.Tensor, config: MelConfig = MEL_32K) -> torch.Tensor:
    """Turn mel power into the normalised log-mels that networks take, same shape."""
    return normalise_(power.clone(), config)


def clip_power(wave: NDArray[np.float32], frontend: LogMel) -> NDArray[np.float16]:
    """Turn a waveform [S] in about [-1, 1] into the fourth root of its mel power [F, M].

    The root brings the range of power into that of 16-bit floats, exact to 0.2 %.
    """
    step = CHUNK_S * frontend.config.sample_rate
    parts: list[NDArray[np.float16]] = []
    for begin in range(0, max(1, len(wave)), step):
        chunk = torch.from_numpy(wave[begin : begin + step])
        if len(chunk) >= frontend.config.n_fft or not parts:
            with torch.inference_mode():
                parts.append(to_power(frontend(chunk[None])[0]).T.pow(0.25).half().numpy())
    return np.concatenate(parts)


class Corpus:
    """Clips of mel power, mapped from disk; `frames` is float16 [N, M], the fourth root of it."""

    def __init__(self, frames: NDArray[np.float16], clips: Sequence[CorpusClip]) -> None:
        self.frames = frames
        self.clips = tuple(clips)

    @classmethod
    def open(cls, folder: Path, *, in_memory: bool = False) -> Corpus:
        """Open what `build` wrote; the frames are mapped from disk, or read if `in_memory`."""
        with (folder / INDEX).open(newline="") as file:
            clips = [
                CorpusClip(row["path"], int(row["start"]), int(row["frames"]))
                for row in csv.DictReader(file)
            ]
        return cls(np.load(folder / FRAMES, mmap_mode=None if in_memory else "r"), clips)

    def where(self, only: Iterable[str] = ("*",), but: Iterable[str] = ()) -> Corpus:
        """Return the clips whose path matches one of `only` and none of `but` (shell patterns)."""
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

    def power(
        self, clip: CorpusClip, begin: int = 0, frames: int | None = None
    ) -> NDArray[np.float32]:
        """Return at most `frames` frames of a clip's mel power [F, M], from `begin` on."""
        stop = clip.frames if frames is None else min(clip.frames, begin + frames)
        root = self.frames[clip.start + begin : clip.start + stop].astype(np.float32)
        root *= root
        root *= root
        return root

    def __len__(self) -> int:
        return len(self.clips)


def audio_files(roots: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of every sound below the roots, in order; names begin with the root's."""
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                yield f"{root.name}/{path.relative_to(root).as_posix()}", path


def build(roots: Sequence[Path], folder: Path, workers: int = 2, synthetic: int = 0) -> Corpus:
    """Decode all sound below `roots`, add `synthetic` made sounds, and write a corpus to `folder`.

    Files that cannot be decoded are left out.
    """
    named = list(audio_files(roots))
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parts = list(pool.map(_file_power, (path for _, path in named), chunksize=16))
    clips = [(name, part) for (name, _), part in zip(named, parts, strict=True) if part is not None]
    frontend = LogMel(MEL_32K)
    clips += [(name, clip_power(wave, frontend)) for name, wave in sounds(synthetic)]
    return write(clips, folder)


def write(parts: Iterable[tuple[str, NDArray[np.float16]]], folder: Path) -> Corpus:
    """Write named arrays of `clip_power` [F, M] as a corpus, and open it."""
    folder.mkdir(parents=True, exist_ok=True)
    clips, arrays, start = [], [], 0
    for name, part in parts:
        clips.append(CorpusClip(name, start, len(part)))
        arrays.append(part)
        start += len(part)
    np.save(folder / FRAMES, np.concatenate(arrays))
    with (folder / INDEX).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(CorpusClip)])
        writer.writerows(map(astuple, clips))
    return Corpus.open(folder)


def _file_power(path: Path) -> NDArray[np.float16] | None:
    """Return `clip_power` of a file, or None if it cannot be decoded."""
    try:
        wave = load_audio(path, MEL_32K.sample_rate)
    except BadAudio:
        return None
    return clip_power(wave, LogMel(MEL_32K))
