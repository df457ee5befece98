"""Mono samples: which a model can take, at another rate, in blocks of one length.

The only resampler of the code base. Axes: S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, TypeAlias

import numpy as np
import soxr
from numpy.typing import NDArray

from embedder.errors import BadAudio

Samples: TypeAlias = NDArray[np.float32]

MAX_AMPLITUDE: Final = 1e4  # full scale is 1; beyond this a log-mel is noise or overflow


def check_samples(samples: NDArray[Any]) -> None:
    """Raise BadAudio unless these are samples that a model can take.

    Parameters
    ----------
    samples : NDArray of any shape
        Must be floating point, not empty, finite, and within +-MAX_AMPLITUDE.
    """
    if samples.dtype.kind != "f":
        raise BadAudio(f"samples are {samples.dtype}; give floats in [-1, 1] (int16: x / 32768)")
    if not samples.size:
        raise BadAudio("no samples; give at least one")
    check_peak(max(-float(samples.min()), float(samples.max())))  # min and max propagate NaN


def check_peak(peak: float) -> None:
    """Raise BadAudio unless the largest magnitude is finite and within MAX_AMPLITUDE."""
    if not math.isfinite(peak):
        raise BadAudio(f"samples contain {peak}; NaN and Inf cannot be embedded")
    if peak > MAX_AMPLITUDE:
        raise BadAudio(f"samples reach {peak:g}; scale them to [-1, 1]")


def resample(samples: Samples, rate: int, target: int) -> Samples:
    """Mono samples [S] at `rate` Hz -> float32 [about S * target / rate], as files are decoded."""
    return np.concatenate(list(resampled([(rate, samples)], target)))


def resampled(chunks: Iterable[tuple[int, Samples]], target: int) -> Iterator[Samples]:
    """Pairs of sample rate and samples [S] -> samples at `target` Hz, in pieces of any length.

    Chunks of one rate that follow each other are one signal.
    """
    for rate, run in groupby(chunks, key=itemgetter(0)):
        mono = (samples for _, samples in run)
        yield from mono if rate == target else _resampled_run(mono, rate, target)


def _resampled_run(mono: Iterable[Samples], rate: int, target: int) -> Iterator[Samples]:
    resampler = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    for samples in mono:
        yield resampler.resample_chunk(samples)
    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)  # the filter's tail


def blocks(pieces: Iterable[Samples], size: int) -> Iterator[Samples]:
    """The same samples in blocks [size]; the last may be shorter, and none is empty."""
    held: list[Samples] = []
    n_held = 0
    for piece in pieces:
        held.append(piece)
        n_held += piece.size
        if n_held >= size:
            joined = np.concatenate(held)
            whole = n_held - n_held % size
            yield from joined[:whole].reshape(-1, size)
            held, n_held = [joined[whole:]], n_held - whole
    if n_held:
        yield np.concatenate(held)
