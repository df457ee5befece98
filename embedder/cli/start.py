"""What commands that work through files begin with: the files, the decoders, the model."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import typer

from embedder.bulk.inputs import find_audio, printable
from embedder.cli import stdin
from embedder.cli.report import counted
from embedder.errors import BadRequest
from embedder.process import threads, wait_asleep

if TYPE_CHECKING:
    from embedder.model import AudioEmbedder

STDOUT: Final = Path("-")
SHOWN: Final = 5  # files that a message names


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a command, and what their rows are called."""

    paths: list[str]
    piped: str | None  # where audio that came on stdin lies

    def name(self, path: str) -> str:
        """A path as rows hold it; "-" for audio that came on stdin."""
        return "-" if path == self.piped else printable(path)


def files(paths: Sequence[str]) -> Files:
    """The files that the arguments name, at least one."""
    piped, listed = stdin.read() if "-" in paths else (None, [])
    skipped: list[str] = []
    names = find_audio(paths, listed if piped is None else [piped], skipped)
    if skipped:
        some = ", ".join(map(printable, skipped[:SHOWN])) + ", ..." * (len(skipped) > SHOWN)
        what = f"{counted(len(skipped), 'file')} without an audio suffix skipped: {some}"
        typer.echo(f"embedder: {what}; name a file to have it tried", err=True)
    if not names:
        raise BadRequest(f"no audio files in {', '.join(paths)}; name files, folders or patterns")
    return Files(names, piped)


def workers(chosen: int | None) -> int:
    """How many processes decode."""
    from embedder.audio.ahead import default_workers

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
    """A file to write text to, or stdout, which "-" also names."""
    if output is None or output == STDOUT:
        yield sys.stdout
        return
    if output.exists() and not overwrite:
        raise BadRequest(f"{output} exists; --overwrite replaces it")
    with output.open("w", encoding="utf-8") as file:
        yield file
