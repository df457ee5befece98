"""`python -m eval NAME ...` is `embedder GROUP COMMAND ...`, by the names that it had at first."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from embedder import cli
from embedder.children import look_here_last
from embedder.cli.late import GROUPS

NAMES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        **{name: ("train", name) for name in GROUPS["train"].commands},
        **{f"bench-{name}": ("bench", name) for name in GROUPS["bench"].commands},
        **{f"hear-{name}": ("hear", name) for name in GROUPS["hear"].commands},
        **{name: ("bench", name) for name in ("abuse", "fuzz", "soak")},
        "bench": ("bench", "engines"),
        "card": ("score", "card"),
        "hear": ("hear", "run"),
        "sed": ("score", "events"),
    }
)


def translated(words: Sequence[str]) -> list[str]:
    """The words after `embedder`; those that name a group and its command stay as they are."""
    name, *rest = words or [""]
    group = GROUPS.get(name)
    if name not in NAMES or (group is not None and rest and rest[0] in group.commands):
        return list(words)
    return [*NAMES[name], *rest]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return cli.main(translated(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    look_here_last()
    sys.exit(main())
