"""The supported Pythons of this machine, oldest first: on each line a version, an interpreter.

Any Python 3 runs this file; nothing needs to be installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
# An interpreter counts if it can make environments and has a lock that our libraries know.
PROBE = """
import ensurepip, sys, sysconfig, venv
assert not sysconfig.get_config_var("Py_GIL_DISABLED")
print("3.%d" % sys.version_info[1])
"""


def supported() -> list[str]:
    """The versions that pyproject.toml allows."""
    bounds = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PYPROJECT.read_text("utf-8"))
    assert bounds, f"no requires-python of this form in {PYPROJECT}"
    oldest, end = map(int, bounds.groups())
    return [f"3.{minor}" for minor in range(oldest, end)]


def said(*command: str) -> str:
    """What the command prints; nothing where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def candidates(version: str) -> Iterator[str]:
    """Interpreters that may be of this version: of the PATH, of pyenv, of uv."""
    yield shutil.which(f"python{version}") or ""
    if root := said("pyenv", "root"):
        yield from map(str, Path(root).glob(f"versions/{version}.*/bin/python"))
    yield said("uv", "python", "find", "--system", "--no-python-downloads", version)


def interpreter(version: str) -> str | None:
    """The first candidate that is what it seems: pyenv's shims may stand for nothing."""
    works = (path for path in candidates(version) if path and said(path, "-c", PROBE) == version)
    return next(works, None)


if __name__ == "__main__":
    for version in supported():
        if path := interpreter(version):
            sys.stdout.write(f"{version} {path}\n")
