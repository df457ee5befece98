"""What commands that work through files begin with: the files, the decoders, the model."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from embedder.bulk.inputs import find_audio
from embedder.errors import BadRequest
from embedder.threads import threads, wait_asleep

if TYPE_CHECKING:
    from embedder.model import AudioEmbedder


def files(paths: Sequence[str]) -> list[str]:
    """The files that the arguments name, at least one."""
    found = find_audio(paths, _listed_on_stdin())
    if not found:
        raise BadRequest(f"no audio files in {', '.join(paths)}; name files, folders or patterns")
    return found


def workers(chosen: int | None) -> int:
    """How many processes decode."""
    from embedder.bulk.prefetch import default_workers

    return default_workers() if chosen is None else chosen


def load(
    name: str, weights: Path | None, device: str, runtime: str, taps: str | None = None
) -> AudioEmbedder:
    """The model; `taps` separated by commas."""
    wait_asleep()
    chosen = None if taps is None else [tap.strip() for tap in taps.split(",")]
    with _uncollected():
        import torch

        from embedder.model import AudioEmbedder

        torch.set_num_threads(threads())
        return AudioEmbedder.load(name, weights, chosen, device, runtime)


@contextmanager
def _uncollected() -> Iterator[None]:
    """What is made here stays, so Python's collector need not look through it, now or later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def lines_to(output: Path | None, overwrite: bool) -> Iterator[TextIO]:
    """A file to write text to, or stdout."""
    if output is None:
        yield sys.stdout
        return
    if output.exists() and not overwrite:
        raise BadRequest(f"{output} exists; --overwrite replaces it")
    with output.open("w", encoding="utf-8") as file:
        yield file


def _listed_on_stdin() -> Iterator[str]:
    for line in sys.stdin.buffer:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)
