"""Embed many files into one table, surviving whatever happens on the way.

    paths ─ decoders ─ blocks ─┬─ short clips of equal length together ─┬─ rows ─ parts ─ table
                               └─ long clips block by block ────────────┘

Finished rows go into parts, OUTPUT.parts/*.parquet, each of which appears whole or not at all.
A job that was killed goes on with the files that no part has, or that have changed since. The last
step makes the table of the parts and moves it into place. So no row is lost, and none is there
twice, at whatever moment a job ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from embedder.audio.ahead import Blocks, decode_ahead
from embedder.audio.decode import Samples
from embedder.bulk.inputs import Stamp, printable
from embedder.bulk.parts import Existing, OpenPart, Parts
from embedder.bulk.tables import ROW_GROUP_BYTES, RowFormat, noted
from embedder.errors import EmbedderError
from embedder.identity import identity
from embedder.model import AudioEmbedder
from embedder.outputs import Kind, Output
from embedder.streams import output_of
from embedder.version import __version__
from embedder.waveforms import AudioBlocks, ByLength, Clock

# A part is saved at whichever comes first; a kill costs the work since then.
PART_FILES: Final = 256
PART_BYTES: Final = ROW_GROUP_BYTES
PART_SECONDS: Final = 20.0

OnFile: TypeAlias = Callable[[str, str | None], None]
OnNote: TypeAlias = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """What to compute for each file, and how."""

    timestamps: bool = False
    window_ms: float | None = None  # None: the default of the kind
    hop_ms: float | None = None
    workers: int = 1  # processes that decode

    def output(self, model: AudioEmbedder) -> Output:
        """What is asked of every file; BadRequest for windows that make no sense."""
        kind: Kind = "timestamps" if self.timestamps else "scene"
        return output_of(model, "embedding", kind, self.window_ms, self.hop_ms)


def row_format(model: AudioEmbedder, options: BulkOptions) -> RowFormat:
    """The columns of a job, and all that decides its numbers: a job goes on only with the same."""
    about = {**options.output(model).key(), "version": __version__, **identity(model)}
    return RowFormat(about, model.scene_embedding_size, options.timestamps)


def embed_files(
    model: AudioEmbedder,
    paths: Sequence[str],
    output: Path,
    options: BulkOptions,
    on_file: OnFile,
    existing: Existing = "refuse",
    name_of: Callable[[str], str] = printable,
    on_note: OnNote = lambda *_: None,
) -> None:
    """Embed files into the table `output`.

    A file whose audio is at fault fails alone, as a row. `on_file` is called with the name of each
    file once it is done, and with its error or None. With `existing="resume"` it is first called
    for the files that were done before; those that have changed since are embedded anew.
    `on_note` is called with what is missing of a file that did not fail. `name_of` gives the name
    of a path in the table. Whatever ends this early, even SIGKILL, finished parts can be resumed.

    Raises
    ------
    BadRequest : the output is there already, was begun with other options, or cannot be.
    """
    with closing(Parts(output, row_format(model, options), existing)) as parts:
        names = {path: name_of(path) for path in paths}
        stamps = {name: Stamp.of(path) for path, name in names.items()}
        parts.forget({name for name in parts.done if _changed(parts, name, stamps.get(name))})
        for name in names.values():
            if name in parts.done:
                on_file(name, parts.done[name])
        job = _Job(model, parts, options, stamps, on_file, on_note)
        job.run([(path, name) for path, name in names.items() if name not in parts.done])
        parts.finish()


def _changed(parts: Parts, name: str, now: Stamp | None) -> bool:
    """Whether a finished file has changed since; a file that is no longer there has not."""
    return now is not None and now != parts.stamps[name] and now.bytes is not None


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A decoded clip that waits for others of its length."""

    index: int
    path: str
    samples: Samples
    note: str | None


class _Job:
    """A job under way: it holds the clips that wait, and the rows that are not saved yet."""

    def __init__(
        self,
        model: AudioEmbedder,
        parts: Parts,
        options: BulkOptions,
        stamps: Mapping[str, Stamp],
        on_file: OnFile,
        on_note: OnNote,
    ) -> None:
        self._model = model
        self._parts = parts
        self._options = options
        self._output = options.output(model)
        self._stamps = stamps
        self._on_file = on_file
        self._on_note = on_note
        self._waiting: ByLength[_Waiting] = ByLength()
        self._rows: dict[int, list[pa.Table]] = {}  # by the file's number among all
        self._row_bytes = 0
        self._saved = time.monotonic()

    def run(self, files: Sequence[tuple[str, str]]) -> None:
        """Embed all files, given as path and name in the table, and save their rows."""
        paths = [path for path, _ in files]
        decoded = decode_ahead(paths, self._model.sample_rate, self._options.workers)
        with closing(decoded):
            try:
                for index, (_, blocks) in enumerate(decoded):
                    self._take(index, files[index][1], blocks)
                self._run_waiting()
            finally:
                self._save()  # whatever happened, these rows are finished

    def _take(self, index: int, path: str, blocks: Blocks) -> None:
        """Embed a file, or let it wait for others of its length."""
        try:
            if self._options.timestamps:
                self._timestamps(index, path, blocks)
            else:
                self._scene(index, path, blocks)
        except EmbedderError as error:
            self._fail(index, path, error)
        if (
            len(self._waiting) + len(self._rows) >= PART_FILES
            or self._row_bytes >= PART_BYTES
            or time.monotonic() - self._saved >= PART_SECONDS
        ):
            self._run_waiting()
            self._save()

    def _run_waiting(self) -> None:
        """Embed every clip that waits."""
        for clips in self._waiting.rest():
            self._scene_batch(clips)

    def _save(self) -> None:
        """Write the finished rows as a part, in the order of the files."""
        rows = [table for _, tables in sorted(self._rows.items()) for table in tables]
        if rows:
            part = self._parts.new()
            part.write(rows)
            part.close()
        self._rows, self._row_bytes = {}, 0
        self._saved = time.monotonic()

    def _scene(self, index: int, path: str, blocks: Blocks) -> None:
        first, second = next(blocks), next(blocks, None)
        if second is not None:
            clock = Clock(chain((first, second), blocks))
            vector = self._model.answer(AudioBlocks(clock), self._output)
            self._finish_scene(index, path, clock.samples, vector, blocks.note)
            return
        clip = _Waiting(index, path, first, blocks.note)
        for clips in self._waiting.add(clip, first.size):
            self._scene_batch(clips)

    def _scene_batch(self, clips: Sequence[_Waiting]) -> None:
        waves = np.stack([clip.samples for clip in clips])
        try:
            vectors = self._model.answer(waves, self._output)
        except EmbedderError as error:
            if len(clips) == 1:
                self._fail(clips[0].index, clips[0].path, error)
            else:
                for clip in clips:  # again alone, so that only those at fault fail
                    self._scene_batch([clip])
            return
        for clip, vector in zip(clips, vectors[:, None], strict=True):
            self._finish_scene(clip.index, clip.path, clip.samples.size, vector, clip.note)

    def _finish_scene(
        self, index: int, path: str, samples: int, vector: Tensor, note: str | None
    ) -> None:
        seconds = np.array([samples / self._model.sample_rate])
        self._finish(index, path, [self._rows_of(path, seconds, vector)], note)

    def _rows_of(self, path: str, where: NDArray[np.float64], vectors: Tensor) -> pa.Table:
        values = vectors.cpu().numpy()
        return self._parts.format.rows(path, self._stamps[path], where, values)

    def _timestamps(self, index: int, path: str, blocks: Blocks) -> None:
        """Embed a file with timestamps; the rows of a long file go to a part of its own."""
        part: OpenPart | None = None
        rows: list[pa.Table] = []
        try:
            for vectors, ms in self._model.pieces(blocks, self._output):
                if _size(rows) >= PART_BYTES:
                    if part is None:
                        self._save()
                        part = self._parts.new()
                    part.write(rows)
                    rows = []
                rows.append(self._rows_of(path, ms[0].cpu().numpy(), vectors[0]))
            if part is not None:
                part.write([*rows[:-1], noted(rows[-1], blocks.note)])
                part.close()
                rows = []
        finally:
            if part is not None:
                part.discard()
        self._finish(index, path, rows, blocks.note)

    def _finish(self, index: int, path: str, rows: list[pa.Table], note: str | None) -> None:
        if note is not None:
            rows = [*rows[:-1], *(noted(last, note) for last in rows[-1:])]
            self._on_note(path, note)
        self._keep(index, rows)
        self._on_file(path, None)

    def _fail(self, index: int, path: str, error: EmbedderError) -> None:
        reason = " ".join(str(error).split())
        self._keep(index, [self._parts.format.failure(path, self._stamps[path], reason)])
        self._on_file(path, reason)

    def _keep(self, index: int, rows: list[pa.Table]) -> None:
        self._rows[index] = rows
        self._row_bytes += _size(rows)


def _size(rows: Iterable[pa.Table]) -> int:
    return sum(table.nbytes for table in rows)
