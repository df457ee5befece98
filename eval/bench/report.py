"""Reports of benchmarks: a table, and the machine that it was measured on."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from embedder.process import available_cores

LIBRARIES: Final = ("torch", "openvino", "av", "soxr", "numpy")

TableRow = dict[str, Any]


def machine() -> dict[str, str | int]:
    """Return the date, the processor, its cores, and the versions of Python and libraries."""
    facts: dict[str, str | int] = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": available_cores(),
        "python": platform.python_version(),
    }
    return facts | {library: _version(library) for library in LIBRARIES}


def markdown(rows: Sequence[TableRow]) -> str:
    """Return a Markdown table of rows, which all have the same keys."""
    titles = list(rows[0])
    lines = [titles, ["---"] * len(titles), *([_cell(row[key]) for key in titles] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(rows: Sequence[TableRow], out: Path | None, title: str | None = None) -> str:
    """Return title, machine and table as Markdown; write the same as JSON to `out`."""
    facts = machine()
    parts = [", ".join(f"{key} {value}" for key, value in facts.items()), markdown(rows)]
    content: dict[str, Any] = {"machine": facts, "rows": rows}
    if title is not None:
        parts = [f"# {title}", *parts]
        content = {"title": title, **content}
    if out is not None:
        out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.0e}" if 0 < value < 1e-3 else f"{value:.3g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "-"
