"""What a benchmark reports: its table, and the machine it ran on."""

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
    """Date, processor, cores and versions."""
    facts: dict[str, str | int] = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": available_cores(),
        "python": platform.python_version(),
    }
    return facts | {library: _version(library) for library in LIBRARIES}


def markdown(rows: Sequence[TableRow]) -> str:
    """A table of rows that have the same keys."""
    titles = list(rows[0])
    lines = [titles, ["---"] * len(titles), *([_cell(row[key]) for key in titles] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(rows: Sequence[TableRow], out: Path | None, title: str | None = None) -> str:
    """Title, machine and table as Markdown; the same as JSON in `out`."""
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
