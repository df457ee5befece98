"""`embedder export`: a model as one ONNX file."""

from __future__ import annotations

import typer

from embedder.cli import options as opt
from embedder.cli import start
from embedder.errors import BadRequest, EmbedderError


def export(
    name: opt.Name,
    output: opt.OnnxFile,
    with_frontend: opt.WithFrontend = False,
    weights: opt.Weights = None,
    taps: opt.Taps = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Write a model as ONNX, checked against torch; docs/onnx.md."""
    if output == start.STDOUT:
        raise BadRequest("an ONNX file is not text; name a file with -o")
    if output.exists() and not overwrite:
        raise BadRequest(f"{output} exists; --overwrite replaces it")
    from embedder.export import ExportFailed, check_installed
    from embedder.export import export as write

    check_installed()  # before weights are fetched
    model = start.load(name, weights, "cpu", "torch", taps)
    try:
        done = write(model, output, with_frontend=with_frontend)
    except ExportFailed as error:
        raise EmbedderError(str(error)) from error
    typer.echo(
        f"{done.path}: {done.size / 1e6:.1f} MB, within {done.error:.0e} of torch (relative)"
    )
