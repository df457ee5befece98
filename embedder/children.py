"""How Python children are started: they import what this process imports, and nothing else.

A child looks into its current folder first, unless it is told not to. That folder is the user's
and may hold an `embedder/`, a `service.py` or a `queue.py` of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

SAFE_PATH: Final = {"PYTHONSAFEPATH": "1"}  # leaves the current folder out of a child's sys.path


def import_path() -> dict[str, str]:
    """Variables with which a child finds the modules that this process finds."""
    folders = (folder or str(Path.cwd()) for folder in sys.path)
    return {"PYTHONPATH": os.pathsep.join(folders), **SAFE_PATH}


def keep_children_safe() -> None:
    """Start every later child so, those of `multiprocessing` too: for a program's first lines.

    `multiprocessing` hands its children this process's sys.path; only what they import before
    that, from the standard library, could come from the current folder.
    """
    os.environ.update(SAFE_PATH)
