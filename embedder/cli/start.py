"""How a command that works through files begins: it finds the files and loads the model."""

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
    """The files of a command, and the names of their rows."""

    paths: list[str]
    piped: str | None  # the file that keeps audio from stdin

    def name(self, path: str) -> str:
        """The name of a file in rows: its path, or "-" for audio from stdin."""
        return "-" if path == self.piped else printable(path)


def files(paths: Sequence[str]) -> Files:
    """The files that the arguments name; BadRequest if there are none."""
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
    """The number of processes that decode."""
    from embedder.audio.ahead import default_workers

    return default_workers() if chosen is None else chosen


def load(
    name: str, weights: Path | None, device: str, runtime: str, taps: str | None = None
) -> AudioEmbedder:
    """Load the model of a command; `taps` are separated by commas."""
    wait_asleep()
    chosen = None if taps is None else [tap.strip() for tap in taps.split(",")]
    with _uncollected():
        import torch

        from embedder.model import AudioEmbedder

        torch.set_num_threads(threads())
        return AudioEmbedder.load(name, weights, chosen, device, runtime)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Spare Python's garbage collector all that is made inside: it stays until the process ends."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def lines_to(output: Path | None, overwrite: bool) -> Iterator[TextIO]:
    """Open a file to write text to; None and "-" are stdout."""
    if output is None or output == STDOUT:
        yield sys.stdout
        return
    if output.exists() and not overwrite:
        raise BadRequest(f"{output} exists; --overwrite replaces it")
    with output.open("w", encoding="utf-8") as file:
        yield file
