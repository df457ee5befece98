"""Code in a Python process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.shared import ROOT


def in_subprocess(code: str, *args: str) -> str:
    """Standard output of a fresh interpreter, which must stay silent on stderr."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
