"""Draw docs/imports.svg, who imports whom, from the code: python docs/draw_imports.py

A box is a module of embedder/, or all modules of a folder; a line goes down to what a box imports.
What an import brings along anyway has no line of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import grimp

ROOT: Final = Path(__file__).resolve().parents[1]
PICTURE: Final = ROOT / "docs/imports.svg"
PACKAGES: Final = ("embedder", "hear_api", "service", "eval")
COLOURS: Final = {
    "embedder": "#dbe9f6",
    "hear_api": "#e9def3",
    "service": "#fde7cf",
    "eval": "#dff0d8",
}
WHOLE: Final = {"service", "hear_api"}  # drawn as one box each
CHARACTER, HEIGHT, GAP, LAYER, MARGIN = 7, 26, 14, 64, 20  # pixels
SWEEPS: Final = 12

Graph = dict[str, set[str]]  # box -> boxes that it imports


def box(module: str) -> str:
    """The box that a module is drawn in."""
    names = module.split(".")
    return names[0] if names[0] in WHOLE else ".".join(names[:2])


def imports() -> Graph:
    """Imports between boxes, without those that run for type checkers only."""
    modules = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    graph: Graph = {box(module): set() for module in sorted(modules.modules)}
    for module in modules.modules:
        for imported in modules.find_modules_directly_imported_by(module):
            graph[box(module)].add(box(imported))
    # The command line starts everything, so its late imports would put it above all others.
    graph["embedder.cli"] = {name for name in graph["embedder.cli"] if name.startswith("embedder")}
    return {name: graph[name] - {name} for name in graph if graph[name] or is_imported(name, graph)}


def is_imported(name: str, graph: Graph) -> bool:
    """Whether another box imports this one."""
    return any(name in imported for imported in graph.values())


def layers(graph: Graph) -> list[list[str]]:
    """Boxes by height: each lies above all that it imports. A circle is a `CycleError`."""
    height: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = max((height[imported] + 1 for imported in graph[name]), default=0)
    top = max(height.values())
    return [sorted(n for n in graph if height[n] == level) for level in range(top, -1, -1)]


def reduced(graph: Graph) -> Graph:
    """The same graph without the lines that a longer way replaces."""
    below: Graph = {}
    for name in TopologicalSorter(graph).static_order():
        below[name] = graph[name].union(*(below[imported] for imported in graph[name]))
    return {
        name: {i for i in imported if not any(i in below[other] for other in imported - {i})}
        for name, imported in graph.items()
    }


def positions(rows: list[list[str]], graph: Graph) -> dict[str, tuple[float, float]]:
    """The centre of each box: rows one below the other, boxes near those that they touch."""
    near: Graph = {name: set(imported) for name, imported in graph.items()}
    for name, imported in graph.items():
        for other in imported:
            near[other].add(name)
    x: dict[str, float] = {}
    for row in rows:
        x |= spread(row)
    for _ in range(SWEEPS):
        for row in rows:
            means = {n: sum(x[o] for o in near[n]) / len(near[n]) for n in row if near[n]}
            row.sort(key=lambda name: (means.get(name, x[name]), name))
            x |= spread(row)
    return {name: (x[name], index * LAYER) for index, row in enumerate(rows) for name in row}


def spread(row: Iterable[str]) -> dict[str, float]:
    """Boxes of a row side by side, around 0."""
    x, right = {}, 0.0
    for name in row:
        x[name] = right + width(name) / 2
        right += width(name) + GAP
    return {name: centre - (right - GAP) / 2 for name, centre in x.items()}


def width(name: str) -> float:
    """Pixels that a box takes."""
    return len(label(name)) * CHARACTER + 16


def label(name: str) -> str:
    """What is written in a box: a module's name, or a folder's with a slash."""
    path = "embedder/__init__" if name == "embedder" else name.replace(".", "/")
    slash = "/" if (ROOT / path).is_dir() else ""
    return path.removeprefix("embedder/") + slash


def svg(graph: Graph, at: Mapping[str, tuple[float, float]]) -> str:
    """The picture."""
    left = min(x - width(name) / 2 for name, (x, _) in at.items()) - MARGIN
    right = max(x + width(name) / 2 for name, (x, _) in at.items()) + MARGIN
    top, bottom = -HEIGHT, max(y for _, y in at.values()) + HEIGHT
    view = f"{left:.0f} {top} {right - left:.0f} {bottom - top:.0f}"
    font = 'font-family="sans-serif" font-size="12"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" {font}>',
        f'<rect x="{left:.0f}" y="{top}" width="100%" height="100%" fill="white"/>',
    ]
    for name in sorted(graph):
        for imported in sorted(graph[name]):
            (x, y), (u, v) = at[name], at[imported]
            y, v = y + HEIGHT / 2, v - HEIGHT / 2
            bend = f"C{x:.0f} {y + 20:.0f} {u:.0f} {v - 20:.0f}"
            curve = f"M{x:.0f} {y:.0f} {bend} {u:.0f} {v:.0f}"
            lines.append(f'<path d="{curve}" fill="none" stroke="#999"/>')
    for name, (x, y) in sorted(at.items()):
        colour = COLOURS[name.partition(".")[0]]
        corner = f'x="{x - width(name) / 2:.0f}" y="{y - HEIGHT / 2:.0f}"'
        size = f'width="{width(name):.0f}" height="{HEIGHT}"'
        lines.append(f'<rect {corner} {size} rx="4" fill="{colour}" stroke="#666"/>')
        lines.append(f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{label(name)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def picture() -> str:
    """The picture of the code as it is."""
    graph = imports()
    fewer = reduced(graph)
    return svg(fewer, positions(layers(graph), fewer))


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")
