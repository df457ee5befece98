"""Labelled clips whose sound is decoded when it is asked for; WAV files; threads."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedder.audio.decode import Samples, load_audio
from eval.data.annotations import TrueEvent


@dataclass(frozen=True, slots=True)
class Clip:
    """A labelled clip: `sound(rate)` decodes it to mono samples [S] at that rate in Hz."""

    name: str
    sound: Callable[[int], Samples]
    split: str
    labels: tuple[str, ...] = ()
    events: tuple[TrueEvent, ...] = ()


def file_sound(path: Path) -> Callable[[int], Samples]:
    """Return a function that decodes this file at a given rate."""
    return partial(load_audio, path)


def write_wav(path: Path, samples: Samples, rate: int) -> None:
    """Write mono samples [S] in [-1, 1] as a 16-bit WAV; louder samples are clipped."""
    pcm = np.clip(np.rint(samples * 32_768.0), -32_768, 32_767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(pcm.tobytes())


def in_parallel(work: Callable[[Any], None], items: Iterable[Any], workers: int) -> None:
    """Call `work` on every item in `workers` threads; the first error stops the rest.

    Threads suffice, because decoding and resampling release the interpreter lock.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
