"""Memory that this process and a decoder share."""

from __future__ import annotations

import fcntl
import os
import tempfile


def shared_file(size: int) -> int:
    """A file descriptor of so much memory, of which only what is written takes any."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("decoded", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, size)
        # Whatever takes over the child could end this process by making the file shorter.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return file
    with tempfile.TemporaryFile() as named_nowhere:
        file = os.dup(named_nowhere.fileno())
    os.ftruncate(file, size)
    return file
