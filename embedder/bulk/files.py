"""`embedder.embed_files`: what `embedder embed` does, from Python."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, overload

from embedder.audio.ahead import default_workers
from embedder.bulk import job
from embedder.bulk.inputs import find_audio
from embedder.bulk.job import BulkOptions, OnFile
from embedder.bulk.parts import Existing
from embedder.bulk.tables import plain_rows
from embedder.errors import BadRequest
from embedder.model import AudioEmbedder

Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

COLUMNS: Final = ("path", "embedding", "error", "note")  # and `seconds`, or `ms` with timestamps


@overload
def embed_files(
    model: AudioEmbedder,
    paths: Paths,
    output: None = ...,
    *,
    timestamps: bool = ...,
    window_ms: float | None = ...,
    hop_ms: float | None = ...,
    workers: int | None = ...,
    on_file: OnFile = ...,
) -> Iterator[dict[str, Any]]: ...
@overload
def embed_files(
    model: AudioEmbedder,
    paths: Paths,
    output: str | os.PathLike[str],
    *,
    timestamps: bool = ...,
    window_ms: float | None = ...,
    hop_ms: float | None = ...,
    workers: int | None = ...,
    existing: Existing = ...,
    on_file: OnFile = ...,
) -> dict[str, str | None]: ...
def embed_files(
    model: AudioEmbedder,
    paths: Paths,
    output: str | os.PathLike[str] | None = None,
    *,
    timestamps: bool = False,
    window_ms: float | None = None,
    hop_ms: float | None = None,
    workers: int | None = None,
    existing: Existing = "refuse",
    on_file: OnFile = lambda *_: None,
) -> Iterator[dict[str, Any]] | dict[str, str | None]:
    """Embed many files into a table, or into rows; a file whose audio is at fault fails alone.

    Parameters
    ----------
    paths : files, folders (searched whole, for audio suffixes) and glob patterns.
    output : the table, .parquet, .npz, .jsonl or .csv. Without: rows, once all files are done.
    timestamps : an embedding every hop, not one for each file.
    window_ms, hop_ms : default: those of `model.scene`, or of `model.timestamps`.
    workers : processes that decode; default: half the cores, at most 8; 0: this process decodes.
    existing : what to do where the table exists: "refuse", "resume" or "overwrite".
    on_file : is called with the path of every file once it is done, and its error or None.

    Returns
    -------
    With `output`, the error of each file, or None. Without, an iterator of rows in the order of
    the files: dicts of `path`, `seconds` (or `ms`), `embedding` (float32 [D], or None),
    `error` and `note`.

    Raises
    ------
    BadRequest : an option makes no sense, nothing is named, or the table cannot be written.
    """
    files = _named(paths)
    options = BulkOptions(
        timestamps, window_ms, hop_ms, default_workers() if workers is None else workers
    )
    options.output(model)  # refuses windows that make no sense, before any row is asked for
    if output is None:
        return _rows(model, files, options, on_file)
    errors: dict[str, str | None] = {}

    def done(path: str, error: str | None) -> None:
        errors[path] = error
        on_file(path, error)

    job.embed_files(model, files, Path(output), options, done, existing)
    return errors


def _named(paths: Paths) -> list[str]:
    named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files = find_audio([os.fspath(path) for path in named])
    if not files:
        raise BadRequest(f"no audio files in {named!r}; name files, folders or patterns")
    return files


def _rows(
    model: AudioEmbedder, files: Sequence[str], options: BulkOptions, on_file: OnFile
) -> Iterator[dict[str, Any]]:
    """The rows of a table that is written for them: memory does not grow with the files."""
    path, *others = COLUMNS
    with tempfile.TemporaryDirectory(prefix="embedder-") as folder:
        table = Path(folder, "rows.parquet")
        job.embed_files(model, files, table, options, on_file)
        yield from plain_rows((path, "ms" if options.timestamps else "seconds", *others), [table])
