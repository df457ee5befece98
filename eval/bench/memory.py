"""What a process has held at most."""

from __future__ import annotations

import re
from pathlib import Path


def peak_megabytes() -> float:
    """Largest resident memory of this process [MiB].

    Not `getrusage`: after `exec` that still counts what the parent held.
    """
    status = Path("/proc/self/status").read_text("ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024
