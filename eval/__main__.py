"""`python -m eval COMMAND`: everything that judges or trains, one function a command.

Exit codes: 0 all is well, 2 the command could not be carried out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import typer
from rich.console import Console

from embedder.children import keep_children_safe
from embedder.errors import EmbedderError
from eval.bench import abuse, bulk, engines, fuzz, server, soak, startup
from eval.hear import cli as hear
from eval.scores import sed
from eval.training import commands, detector_commands

COMMANDS: Final[dict[str, Callable[..., Any]]] = {
    "corpus": commands.corpus,
    "distill": commands.distill,
    "logits": commands.logits,
    "distill-tags": commands.distill_tags,
    "finetune": commands.finetune,
    "mixtures": detector_commands.mixtures,
    "pseudo": detector_commands.pseudo,
    "detector": detector_commands.detector,
    "probe": commands.probe,
    "card": commands.card,
    "sed": sed.score,
    "bench-bulk": bulk.bench_bulk,
    "bench-server": server.bench_server,
    "bench": engines.bench,
    "bench-startup": startup.bench_startup,
    "abuse": abuse.abuse,
    "fuzz": fuzz.fuzz,
    "soak": soak.soak,
    **hear.COMMANDS,
}

app: Final = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)


def main() -> None:
    """Run one command; what a caller can put right is said in one line."""
    keep_children_safe()
    try:
        app(prog_name="python -m eval")
    except EmbedderError as error:
        Console(stderr=True, markup=False, soft_wrap=True).print(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
