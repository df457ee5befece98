"""The finished parts of a bulk job, which lie on disk until the job is done.

    OUTPUT.parts/about.json         what the job computes; written last when a job begins
    OUTPUT.parts/00000000.parquet   the rows of some files; all rows of a file are in one part
    OUTPUT.parts/unfinished         the file that is being written
    OUTPUT.parts/lock               locked by the process that runs the job

Every file is written as `unfinished` and then renamed, so that a file with another name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedder.bulk.inputs import Stamp
from embedder.bulk.tables import WRITERS, RowFormat, batches, parquet_writer, read_about
from embedder.errors import BadRequest

if sys.platform != "win32":
    import fcntl

Existing = Literal["refuse", "resume", "overwrite"]

_ABOUT: Final = "about.json"
# Entries of `about`, and the options that decide them where the names do not tell.
_CHOSEN_BY: Final = {"engine": "--runtime and --device", "weights_sha256": "--weights"}


def parts_folder(output: Path) -> Path:
    """The folder for the parts of an output."""
    return output.with_name(f"{output.name}.parts")


def check_output(output: Path, existing: Existing) -> None:
    """Raise BadRequest if the output cannot be written, or is there and `existing` forbids it."""
    if output.suffix.lower() not in WRITERS:
        raise BadRequest(f"cannot write {str(output)!r}; name a file in {', '.join(WRITERS)}")
    if output.is_dir() or not output.parent.is_dir():
        raise BadRequest(f"cannot write {str(output)!r}; name a file in an existing folder")
    begun = (parts_folder(output) / _ABOUT).exists()
    if existing == "refuse" and output.exists():
        raise BadRequest(f"{output} exists; --resume adds what it lacks, --overwrite replaces it")
    if existing == "refuse" and begun:
        raise BadRequest(
            f"a job for {output} did not finish; --resume continues it, --overwrite begins anew"
        )
    if existing == "resume" and not begun and output.exists() and read_about(output) is None:
        raise BadRequest(f"{output} is no Parquet file of ours to add to; use --overwrite")


class OpenPart:
    """A part that is being written; `close` makes it one of the job's, `discard` removes it."""

    def __init__(self, target: Path, unfinished: Path, schema: pa.Schema) -> None:
        self._target = target
        self._unfinished = unfinished
        self._writer = parquet_writer(unfinished, schema)

    def write(self, tables: Sequence[pa.Table]) -> None:
        """Add a row group."""
        if tables:
            self._writer.write_table(pa.concat_tables(tables))

    def close(self) -> None:
        """Finish the file and give it its name."""
        self._writer.close()
        _move(self._unfinished, self._target)

    def discard(self) -> None:
        """Remove what was written; after `close` this does nothing."""
        if self._writer.is_open:
            self._writer.close()
            self._unfinished.unlink()


class Parts:
    """The finished rows of a job, locked for this process until `close`.

    `done` maps each finished file to its error, or to None if it did not fail; `stamps` has the
    stamp that each of them had.

    Raises
    ------
    BadRequest : the output cannot be written, is there already, or was begun with other options;
        or another process is writing it.
    """

    def __init__(self, output: Path, rows: RowFormat, existing: Existing = "refuse") -> None:
        check_output(output, existing)
        self.format = rows
        self._output = output
        self._folder = parts_folder(output)
        self._folder.mkdir(exist_ok=True)
        self._lock = _locked(self._folder / "lock", output)
        self._unfinished = self._folder / "unfinished"
        self._about = self._folder / _ABOUT
        try:
            if existing == "resume" and self._about.exists():
                self._check_same(json.loads(self._about.read_text("utf-8")))
            else:
                self._begin(extend=existing == "resume" and output.exists())
            self.done: dict[str, str | None] = {}
            self.stamps: dict[str, Stamp] = {}
            self._read_done()
        except BaseException:
            self.close()
            raise

    def new(self) -> OpenPart:
        """Begin the next part; the one before must be closed or discarded."""
        last = max((int(path.stem) for path in self._files()), default=-1)
        target = self._folder / f"{last + 1:08d}.parquet"
        return OpenPart(target, self._unfinished, self.format.schema)

    def forget(self, names: Collection[str]) -> None:
        """Remove the rows of these files from all parts."""
        for name in names:
            del self.done[name], self.stamps[name]
        for path in self._files() if names else ():
            schema = pq.read_schema(path)
            rewritten = OpenPart(path, self._unfinished, schema)
            changed = False
            for table in batches([path]):
                others = table.filter(pc.invert(pc.is_in(table["path"], pa.array(list(names)))))
                changed = changed or len(others) < len(table)
                rewritten.write([others])
            if changed:
                rewritten.close()
            else:
                rewritten.discard()

    def finish(self) -> None:
        """Write the output from all parts; `close` then removes them."""
        write = WRITERS[self._output.suffix.lower()]
        write(self._unfinished, self.format.schema, self._files())
        _move(self._unfinished, self._output)
        self._about.unlink()  # from now on there is no job to continue

    def close(self) -> None:
        """Unlock the job; its parts stay on disk unless it is finished."""
        if not self._about.exists():
            shutil.rmtree(self._folder)
        self._lock.close()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))

    def _begin(self, extend: bool) -> None:
        self._about.unlink(missing_ok=True)
        for leftover in self._files():
            leftover.unlink()
        if extend:  # the rows of the output are the first part
            self._check_same(read_about(self._output) or {})
            _link(self._output, self._folder / "00000000.parquet")
        self._unfinished.write_text(json.dumps(self.format.about, indent=1), "utf-8")
        _move(self._unfinished, self._about)

    def _check_same(self, before: Mapping[str, Any]) -> None:
        for key, value in self.format.about.items():
            if before.get(key) != value:
                raise BadRequest(
                    f"{self._output} was begun with {key} {before.get(key)!r}, not {value!r}; "
                    f"resume with the same {_CHOSEN_BY.get(key, 'options')}, or --overwrite"
                )

    def _read_done(self) -> None:
        columns = ["path", "error", "bytes", "modified"]
        for table in batches(self._files(), columns):
            for row in table.group_by(columns).aggregate([]).to_pylist():
                self.done[row["path"]] = row["error"]
                self.stamps[row["path"]] = Stamp(row["bytes"], row["modified"])


def _locked(path: Path, output: Path) -> BinaryIO:
    """The lock file; it stays locked until it is closed or the process ends in any way."""
    file = path.open("wb")
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise BadRequest(f"another process is writing {output}; wait for it") from None
    return file


def _move(source: Path, target: Path) -> None:
    """Rename a file after its content has reached the disk."""
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    source.replace(target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
