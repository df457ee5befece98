"""Clips to judge or train on: their sound when asked for, labels, events; and writing sound."""

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
    """One example: its sound at any rate, its split, and labels or events."""

    name: str
    sound: Callable[[int], Samples]
    split: str
    labels: tuple[str, ...] = ()
    events: tuple[TrueEvent, ...] = ()


def file_sound(path: Path) -> Callable[[int], Samples]:
    """A file's sound, decoded when asked for."""
    return partial(load_audio, path)


def write_wav(path: Path, samples: Samples, rate: int) -> None:
    """Mono, 16 bit; samples beyond full scale are clipped."""
    pcm = np.clip(np.rint(samples * 32_768.0), -32_768, 32_767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(pcm.tobytes())


def in_parallel(work: Callable[[Any], None], items: Iterable[Any], workers: int) -> None:
    """Threads suffice: decoding and resampling leave the interpreter free."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
