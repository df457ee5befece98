"""Which files a command is to work on."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from embedder.defaults import AUDIO_SUFFIXES
from embedder.errors import BadRequest

_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Stamp:
    """By which a file is known to be unchanged; None of a file that is not there."""

    bytes: int | None
    modified: float | None  # seconds since 1970

    @classmethod
    def of(cls, path: str) -> Stamp:
        """The file's stamp as it is now."""
        try:
            about = Path(path).stat()
        except (OSError, ValueError):
            return cls(None, None)
        return cls(about.st_size, about.st_mtime)


def find_audio(
    arguments: Iterable[str], listed: Iterable[str] = (), skipped: list[str] | None = None
) -> list[str]:
    """Files named by files, folders (searched whole), glob patterns, and "-" for those `listed`.

    Each once, in the order named; those of a folder or pattern sorted. A name of nothing stays
    in the list, and fails when its turn comes. Files that folders hold without an audio suffix
    are left out, and added to `skipped`.

    Raises
    ------
    BadRequest : a name is a URL.
    """
    names = chain.from_iterable(listed if name == "-" else [name] for name in arguments)
    others: list[str] = [] if skipped is None else skipped
    return list(dict.fromkeys(chain.from_iterable(_expand(name, others) for name in names)))


def printable(path: str) -> str:
    """A path as tables hold it: bytes of a name that are not UTF-8 are escaped."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _expand(name: str, skipped: list[str]) -> Iterable[str]:
    path = Path(name)
    if path.is_dir():
        return map(str, _audio_below(path, skipped))
    if _URL.match(name) and not path.exists():
        raise BadRequest(f"{name} is a URL, and nothing is fetched; download it and name the file")
    if glob.has_magic(name) and not path.exists():
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - may be absolute
        if matches:
            return chain.from_iterable(_expand(match, skipped) for match in matches)
    return [name]


def _audio_below(folder: Path, skipped: list[str]) -> list[Path]:
    """Files with an audio suffix; the others that are not hidden are added to `skipped`."""
    files = sorted(
        path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file()
    )
    skipped += [str(path) for path in files if path.suffix.lower() not in AUDIO_SUFFIXES]
    return [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
