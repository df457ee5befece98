"""The `embedder` command: one function a subcommand, every option also a variable EMBEDDER_...

Exit codes: 0 all is well, 1 some files failed, 2 the command could not be carried out,
130 interrupted. Torch is imported by the commands that need it, so that help is quick.
"""

from __future__ import annotations

import atexit
import errno
import gc
import json
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import typer
from typer.core import TyperGroup

from embedder.children import keep_children_safe
from embedder.cli import options as opt
from embedder.cli import start
from embedder.cli.detect import detect
from embedder.cli.embed import embed
from embedder.cli.export import export
from embedder.cli.models import models
from embedder.cli.report import Report
from embedder.defaults import DEFAULT_MODEL
from embedder.errors import BadRequest, EmbedderError
from embedder.zoo import lookup

if TYPE_CHECKING:
    from embedder.model import AudioEmbedder

REFUSED: Final = 2
INTERRUPTED: Final = 130


class _Commands(TyperGroup):
    """Any command's errors as one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EmbedderError as error:
            reason = str(error)
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:  # a full disk, a folder that may not be written
            if error.errno == errno.EPIPE:
                raise
            reason = str(error)
        _complain(f"error: {textwrap.shorten(reason, 1000)}")
        raise typer.Exit(REFUSED)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def about(version: opt.Version = False) -> None:
    """Embeddings and tags of any audio. Every option is also a variable EMBEDDER_..."""


app.command()(embed)


@app.command()
def tag(
    paths: opt.Paths,
    top: opt.Top = 10,
    as_json: opt.AsJson = False,
    output: opt.TagLines = None,
    model: opt.Model = DEFAULT_MODEL,
    weights: opt.Weights = None,
    device: opt.Device = "auto",
    runtime: opt.Runtime = "auto",
    workers: opt.Workers = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Show what is heard in every file: labels with their probabilities."""
    files = start.files(paths)
    with start.lines_to(output, overwrite) as sink:
        embedder = start.load(model, weights, device, runtime)
        with Report(len(files.paths)) as report:
            for path, tags, error, note in _tags(embedder, files, top, start.workers(workers)):
                if as_json or output:
                    line = {"path": path, "tags": tags, "error": error, "note": note}
                    sink.write(f"{json.dumps(line, ensure_ascii=False)}\n")
                elif error is None:
                    scores = "".join(f"{tag['score']:8.3f}  {tag['label']}\n" for tag in tags)
                    sink.write(f"{path}\n{scores}")
                sink.flush()
                report.file(path, error, note)
    report.exit()


app.command()(detect)
app.command()(export)
app.command()(models)


@app.command()
def fetch(names: opt.Names) -> None:
    """Download models, check them, and say where they are."""
    from embedder import checkpoints

    specs = [lookup(name) for name in names]
    for spec in specs:
        checkpoints.load(spec)  # found or fetched; verified either way
        typer.echo(checkpoints.find(spec))


@app.command()
def serve(
    host: opt.Host = None,
    port: opt.Port = None,
    model: opt.Model = DEFAULT_MODEL,
    weights: opt.Weights = None,
    device: opt.Device = "auto",
    runtime: opt.Runtime = "auto",
) -> None:
    """Run the HTTP server; its other settings are variables only: docs/service.md."""
    from service.__main__ import serve as run

    given = {"host": host, "port": port, "model": model, "weights": weights}
    given |= {"device": device, "runtime": runtime}
    # Not as arguments: every worker of the server reads its environment.
    os.environ.update({f"EMBEDDER_{k.upper()}": str(v) for k, v in given.items() if v is not None})
    try:
        code = run()
    except ValueError as error:  # a variable that makes no sense
        raise BadRequest(str(error)) from error
    raise typer.Exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # At its end a process would look for garbage among all that torch has made, for half a second.
    atexit.register(gc.freeze)
    keep_children_safe()
    try:
        app(args=None if argv is None else list(argv), prog_name="embedder")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _complain(line: str) -> None:
    typer.echo(f"embedder: {line}", err=True)


def _tags(
    embedder: AudioEmbedder, files: start.Files, top: int, workers: int
) -> Iterator[tuple[str, list[dict[str, Any]], str | None, str | None]]:
    """Path, tags with the most probable first, the error of a file that failed, and a note."""
    from embedder.audio.ahead import decode_ahead

    with closing(decode_ahead(files.paths, embedder.sample_rate, workers)) as decoded:
        for path, blocks in decoded:
            name = files.name(path)
            try:
                scores, order = embedder.tags_stream(blocks)[0].sort(descending=True)
            except EmbedderError as error:
                yield name, [], str(error), None
                continue
            best = zip(scores[:top].tolist(), order[:top].tolist(), strict=True)
            tags = [{"label": embedder.labels[i], "score": round(score, 3)} for score, i in best]
            yield name, tags, None, blocks.note
