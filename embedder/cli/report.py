"""Progress and failures of a command that works through files, for the person at the terminal."""

from __future__ import annotations

from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SOME_FAILED: Final = 1


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 file", "2 files"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class Report:
    """Shows failures on stderr, and progress where that is a terminal."""

    def __init__(self, n_files: int, what: str = "files") -> None:
        self.failed = 0
        self._n_files = n_files
        self._console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), console=self._console)
        self._progress.disable = n_files < 2 or not self._console.is_terminal
        self._task = self._progress.add_task(what, total=n_files)

    def __enter__(self) -> Report:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def file(self, path: str, error: str | None, note: str | None = None) -> None:
        """Count a file that is done or has failed; `note` says what is missing of a good one."""
        if note is not None:
            self.note(path, note)
        if error is not None:
            self.failed += 1
            self.say(f"{path}: {error}")
        self._progress.advance(self._task)

    def note(self, path: str, note: str) -> None:
        """Say what is missing of a file that did not fail."""
        self.say(f"{path}: {note}")

    def say(self, line: str) -> None:
        """Print a line on stderr, above the progress."""
        self._console.print(line)

    def exit(self, output: str = "") -> None:
        """End the command; exit code 1 if a file failed."""
        if self.failed or self._console.is_terminal:
            self.say(f"{output}{counted(self._n_files, 'file')}, {self.failed} failed")
        raise typer.Exit(SOME_FAILED if self.failed else 0)
