"""Memory that the server shares with a decoder process."""

from __future__ import annotations

import fcntl
import os
import tempfile


def shared_file(size: int) -> int:
    """Return a descriptor of `size` bytes; only pages that are written take memory."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("decoded", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, size)
        # Without a seal, an attacker who controls the decoder could shorten the file: the server
        # would crash at its next access.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return file
    with tempfile.TemporaryFile() as nameless:
        file = os.dup(nameless.fileno())
    os.ftruncate(file, size)
    return file
