"""Reads stdin where a command is given "-": audio, or a list of files."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from typing import Final

_HEAD: Final = 1 << 16  # bytes looked at; no format that is decoded does long without a NUL


def read() -> tuple[str | None, list[str]]:
    """The path of the audio that came and an empty list, or None and the files that were listed.

    A list has a file a line. No name of a file can hold a NUL, so bytes that hold one are audio.
    It is kept in a temporary file until the process ends, because decoding seeks, often in another
    process.
    """
    head = sys.stdin.buffer.read(_HEAD)
    if b"\0" in head:
        return _kept(head), []
    lines = (head + sys.stdin.buffer.read()).split(b"\n")
    return None, [os.fsdecode(line) for line in (line.rstrip(b"\r") for line in lines) if line]


def _kept(head: bytes) -> str:
    file, path = tempfile.mkstemp(prefix="embedder-stdin-")
    atexit.register(os.unlink, path)
    with os.fdopen(file, "wb") as audio:
        audio.write(head)
        shutil.copyfileobj(sys.stdin.buffer, audio)
    return path
