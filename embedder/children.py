"""How Python child processes are started, so that they import the same modules as this one.

By default a child looks for modules in its current folder first. That folder is the user's and may
hold an `embedder/`, a `service.py` or a `queue.py` of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

SAFE_PATH: Final = {"PYTHONSAFEPATH": "1"}  # leaves the current folder out of a child's sys.path


def import_path() -> dict[str, str]:
    """Environment variables with which a child finds the same modules as this process."""
    folders = (folder or str(Path.cwd()) for folder in sys.path)
    return {"PYTHONPATH": os.pathsep.join(folders), **SAFE_PATH}


def keep_children_safe() -> None:
    """Leave the current folder out for every later child; a program calls this at its start.

    `multiprocessing` hands this process's sys.path to its children. Without this call, the modules
    of the standard library that they import before that could come from the current folder.
    """
    os.environ.update(SAFE_PATH)


def look_here_last() -> None:
    """Look for modules in the current folder last, which `python -m` has put first."""
    if sys.path[0] == str(Path.cwd()):
        sys.path.append(sys.path.pop(0))
