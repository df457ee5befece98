"""`embedder serve`: the HTTP server, which is another package of ours."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, Final

import typer

from embedder.cli import late
from embedder.cli import options as opt
from embedder.defaults import DEFAULT_MODEL
from embedder.errors import BadRequest
from embedder.extras import require_extra

# A variable that is no option of any command and no setting of the server.
_WEIGHTS_DIR: Final = "weights_dir"


def serve(
    ctx: typer.Context,
    host: opt.Host = None,
    port: opt.Port = None,
    model: opt.Model = DEFAULT_MODEL,
    weights: opt.Weights = None,
    device: opt.Device = "auto",
    runtime: opt.Runtime = "auto",
) -> None:
    """Run the HTTP server; its other settings are variables only: docs/service.md."""
    require_extra("serve")
    run = late.imported(late.SERVE)
    known = {*_of_the_server(), *_of_commands(ctx.find_root().command)}
    for line in mistakes(os.environ, known):
        typer.echo(f"embedder: {line}", err=True)
    given = {"host": host, "port": port, "model": model, "weights": weights}
    given |= {"device": device, "runtime": runtime}
    # Not as arguments: every worker of the server reads its environment.
    os.environ.update({opt.variable(k): str(v) for k, v in given.items() if v is not None})
    if weights is None:  # the variable may hold the weights of another model
        os.environ.pop(opt.variable("weights"), None)
    try:
        code = run()
    except ValueError as error:  # a variable that makes no sense
        raise BadRequest(str(error)) from error
    raise typer.Exit(code)


def mistakes(environment: Iterable[str], known: Iterable[str]) -> list[str]:
    """One line for each variable EMBEDDER_... that nothing reads, with the nearest known name."""
    names = sorted(known)
    lines = []
    for name in sorted(environment):
        if name.startswith(opt.PREFIX) and name.upper() not in names:
            near = get_close_matches(name, names, n=1)
            advice = f"did you mean {near[0]}?" if near else "docs/service.md lists all settings"
            lines.append(f"{name} is no setting and is ignored; {advice}")
    return lines


def _of_the_server() -> Iterator[str]:
    yield from map(opt.variable, late.imported(late.SERVER_SETTINGS).model_fields)
    yield opt.variable(_WEIGHTS_DIR)


def _of_commands(app: Any) -> Iterator[str]:
    """The variables of every option, those of late commands too."""
    for command in app.commands.values():
        yield from (option.envvar for option in command.params if option.envvar)
    yield from late.VARIABLES
