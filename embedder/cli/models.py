"""`embedder models` and `embedder fetch`: what there is, what it costs, and its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import typer

from embedder.cli import options as opt
from embedder.cli.report import Report
from embedder.described import spec_to_json
from embedder.zoo import MODELS, ModelSpec, lookup

Row: TypeAlias = dict[str, Any]
Columns: TypeAlias = tuple[tuple[str, str], ...]

# Titles of columns, and the keys of rows under them. Numbers are aligned to the right.
LISTED: Final[Columns] = (
    ("name", "name"),
    ("family", "family"),
    ("width", "width"),
    ("params (M)", "params"),
    ("MACs (G)", "macs"),
    ("mAP", "mean_ap"),
    ("PSDS1", "psds1"),
    ("here", "path"),
)
PROFILED: Final[Columns] = (
    ("name", "name"),
    ("params (M)", "measured_params"),
    ("published", "params"),
    ("MACs (G)", "measured_macs"),
    ("published", "macs"),
    ("peak (MB)", "peak_mb"),
    ("mAP", "mean_ap"),
    ("PSDS1", "psds1"),
)
_WORDS: Final = {"name", "family", "path"}
_DECIMALS: Final = {"measured_params": 3, "measured_macs": 3, "peak_mb": 1}


def models(
    names: opt.SomeNames = None, profile: opt.Profile = False, as_json: opt.AsJson = False
) -> None:
    """List models with their figures as published; with --profile, measure their networks."""
    rows = _profiled(names) if profile else [_row(name, lookup(name)) for name in names or MODELS]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    typer.echo(_table(rows, PROFILED if profile else LISTED))


def fetch(names: opt.Names) -> None:
    """Download models, check them, and say where they are."""
    from embedder import checkpoints

    specs = [lookup(name) for name in names]
    for spec in specs:
        checkpoints.load(spec)  # from disk or downloaded; checked either way
        typer.echo(checkpoints.find(spec))


def _profiled(names: list[str] | None) -> list[Row]:
    specs = {name: lookup(name) for name in names or ()}
    from embedder.complexity import architectures, measure

    specs = specs or {name: MODELS[name] for name in architectures()}
    rows = []
    with Report(len(specs), "models") as report:
        for name, spec in specs.items():
            cost = measure(spec)
            measured = {
                "measured_params": round(cost.params / 1e6, 3),
                "measured_macs": round(cost.macs / 1e9, 3),
                "peak_mb": round(cost.peak_bytes / 1e6, 1),
            }
            rows.append(_row(name, spec) | measured)
            report.file(name, None)
    return rows


def _row(name: str, spec: ModelSpec) -> Row:
    from embedder import checkpoints

    path = checkpoints.find(spec)
    return {
        "name": name,
        "family": spec_to_json(spec)["family"],
        "width": spec.network.width,
        "sample_rate": spec.mel.sample_rate,
        "params": spec.params,
        "macs": spec.macs,
        "mean_ap": spec.mean_ap,
        "psds1": spec.psds1,
        "url": spec.url,
        "path": None if path is None else str(path),
    }


def _table(rows: Sequence[Row], columns: Columns) -> str:
    """Text in aligned columns, never cut to a terminal's width."""
    titles = [title for title, _ in columns]
    cells = [titles, *([_cell(key, row[key]) for _, key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = ["<" if key in _WORDS else ">" for _, key in columns]
    lines = [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "path":
        return "yes"
    if key in _DECIMALS:
        return f"{value:.{_DECIMALS[key]}f}"
    return value if isinstance(value, str) else f"{value:g}"
