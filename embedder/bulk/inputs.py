"""The files that a command is to work on."""

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
    """Size and time of change, which show whether a file has changed; None if it is not there."""

    bytes: int | None
    modified: float | None  # seconds since 1970

    @classmethod
    def of(cls, path: str) -> Stamp:
        """The stamp of a file as it is now."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return cls(None, None)
        return cls(status.st_size, status.st_mtime)


def find_audio(
    arguments: Iterable[str], listed: Iterable[str] = (), skipped: list[str] | None = None
) -> list[str]:
    """The paths that the arguments name, each once and in the order named.

    An argument is a file, a folder, which is searched with all folders in it, a glob pattern, or
    "-", which stands for all names in `listed`. The files of a folder or pattern are sorted. A name
    of nothing stays in the list, and fails when its turn comes. Files in folders that have no audio
    suffix are left out, and added to `skipped`.

    Raises
    ------
    BadRequest : a name is a URL.
    """
    names = chain.from_iterable(listed if name == "-" else [name] for name in arguments)
    others: list[str] = [] if skipped is None else skipped
    return list(dict.fromkeys(chain.from_iterable(_expand(name, others) for name in names)))


def printable(path: str) -> str:
    """A path as tables hold it; bytes of a name that are not UTF-8 are escaped."""
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
    """Files with an audio suffix, sorted; others that are not hidden are added to `skipped`."""
    files = sorted(
        path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file()
    )
    skipped += [str(path) for path in files if path.suffix.lower() not in AUDIO_SUFFIXES]
    return [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
