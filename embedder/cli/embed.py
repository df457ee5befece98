"""`embedder embed`: an embedding of every file, or of every moment of it, in one table."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embedder.cli import options as opt
from embedder.cli import start
from embedder.cli.report import Report
from embedder.defaults import DEFAULT_MODEL
from embedder.errors import BadRequest
from embedder.extras import require_extra

if TYPE_CHECKING:
    from embedder.bulk.parts import Existing

TEXT_FORMATS: Final = ("jsonl", "csv")  # which stdout can take


def embed(
    paths: opt.Paths,
    output: opt.Table,
    form: opt.TableFormat = None,
    model: opt.Model = DEFAULT_MODEL,
    weights: opt.Weights = None,
    taps: opt.Taps = None,
    device: opt.Device = "auto",
    runtime: opt.Runtime = "auto",
    timestamps: opt.Timestamps = False,
    window_ms: opt.WindowMs = None,
    hop_ms: opt.HopMs = None,
    workers: opt.Workers = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
) -> None:
    """Write an embedding of every file to one table."""
    require_extra("bulk")
    from embedder.bulk.parts import check_output

    if resume and overwrite:
        raise BadRequest("--resume keeps what is there, --overwrite does not; choose one")
    existing: Existing = "resume" if resume else "overwrite" if overwrite else "refuse"
    with _table(output, form, resume) as table:
        check_output(table, existing)
        files = start.files(paths)
        embedder = start.load(model, weights, device, runtime, taps)
        from embedder.bulk.job import BulkOptions, embed_files

        options = BulkOptions(timestamps, window_ms, hop_ms, start.workers(workers))
        with Report(len(files.paths)) as report:
            try:
                embed_files(
                    *(embedder, files.paths, table, options, report.file, existing),
                    name_of=files.name,
                    on_note=report.note,
                )
            except KeyboardInterrupt:
                if table == output:
                    report.say(f"finished files are kept; --resume continues {output}")
                raise
    report.exit("" if output == start.STDOUT else f"{output}: ")


@contextmanager
def _table(output: Path, form: str | None, resume: bool) -> Iterator[Path]:
    """The table to write: `output`, or a temporary file that is copied to stdout at the end."""
    if output != start.STDOUT:
        if form is not None:
            raise BadRequest("--format goes with -o -; the suffix of a file names its format")
        yield output
        return
    if resume:
        raise BadRequest("--resume continues a file; name it with -o")
    name = form or TEXT_FORMATS[0]
    if name not in TEXT_FORMATS:
        raise BadRequest(f"cannot write {name!r} to stdout; choose {' or '.join(TEXT_FORMATS)}")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, f"stdout.{name}")
        yield table
        with table.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
