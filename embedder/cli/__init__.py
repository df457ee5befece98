"""The `embedder` command: each subcommand is a function, and help shows them in panels.

Exit codes: 0 all is well, 1 some files failed, 2 the command could not be carried out,
130 interrupted. Torch is imported by the commands that need it, so that help is quick.
"""

from __future__ import annotations

import atexit
import errno
import gc
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import typer
from typer.core import TyperGroup

from embedder.children import keep_children_safe
from embedder.cli import late
from embedder.cli import options as opt
from embedder.cli.detect import detect
from embedder.cli.embed import embed
from embedder.cli.export import export
from embedder.cli.models import fetch, models
from embedder.cli.serve import serve
from embedder.cli.tag import tag
from embedder.errors import EmbedderError
from embedder.extras import advice
from embedder.process import keep_freed_memory

REFUSED: Final = 2
INTERRUPTED: Final = 130


class _Commands(TyperGroup):
    """Turns the errors of any command into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EmbedderError as error:
            reason = str(error)
        except ModuleNotFoundError as error:
            missing = advice(error.name or "")
            if missing is None:
                raise
            reason = missing
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

# In the order of help: what a panel is called, and the commands in it.
PANELS: Final[Mapping[str, Sequence[Callable[..., None]]]] = {
    "Sound": (tag, embed, detect),
    "Models": (models, fetch, export),
    "Server": (serve,),
}
EVALUATION: Final = "Training and evaluation"

for _panel, _commands in PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
for _name in late.GROUPS:
    app.add_typer(late.group_app(_name), rich_help_panel=EVALUATION)


@app.callback()
def about(version: opt.Version = False) -> None:
    """Embeddings, tags and events of any audio. Options are also variables: docs/cli.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # Otherwise the garbage collector looks through all of torch's objects at exit, half a second.
    atexit.register(gc.freeze)
    keep_children_safe()
    keep_freed_memory()  # before threads are there
    try:
        app(args=None if argv is None else list(argv), prog_name="embedder")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _complain(line: str) -> None:
    typer.echo(f"embedder: {line}", err=True)
