"""Sources: what a caller names as audio, opened as a binary file."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from embedder.errors import BadAudio, BadRequest

AudioSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@contextmanager
def opened(source: AudioSource) -> Iterator[BinaryIO]:
    """The source as a binary file, which is closed at the end if it was opened here.

    Raises
    ------
    BadAudio : no regular file can be opened there, or the source is a URL.
    BadRequest : the source is a closed file, or no source of audio at all.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(bytes(source))
    elif isinstance(source, str | os.PathLike):
        if _URL.match(os.fspath(source)):
            raise BadAudio(f"{source!r} is a URL, and none is fetched; download it, give its path")
        with _open_path(Path(source)) as file:
            yield file
    elif hasattr(source, "read") and hasattr(source, "seek") and not hasattr(source, "encoding"):
        if getattr(source, "closed", False):
            raise BadRequest("the audio file is closed; open it, or give its path")
        yield source
    else:
        kind = type(source).__name__
        raise BadRequest(f"cannot read audio from a {kind}; give a path, bytes or a binary file")


def _open_path(path: Path) -> BinaryIO:
    try:
        if path.is_file():  # reading a named pipe would block, reading a device might never end
            return path.open("rb")
        reason = "it is not a regular file" if path.exists() else "no such file"
    except OSError as error:
        raise BadAudio(f"cannot open {str(path)!r}: {error.strerror}") from error
    raise BadAudio(f"cannot open {str(path)!r}: {reason}")
