"""Which files a command is to work on."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Final

# What is taken from folders; a file that is named itself may be called anything.
AUDIO_SUFFIXES: Final = (
    *(".wav", ".wave", ".w64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".flac"),
    *(".mp2", ".mp3", ".aac", ".ac3", ".eac3", ".amr", ".ogg", ".oga", ".opus", ".spx"),
    *(".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".mka", ".mkv", ".webm", ".wma", ".asf"),
)


def find_audio(arguments: Iterable[str], listed: Iterable[str] = ()) -> list[str]:
    """Files named by files, folders (searched whole), glob patterns, and "-" for those `listed`.

    Each once, in the order named; those of a folder or pattern sorted. A name of nothing stays
    in the list, and fails when its turn comes.
    """
    names = chain.from_iterable(listed if name == "-" else [name] for name in arguments)
    return list(dict.fromkeys(chain.from_iterable(map(_expand, names))))


def printable(path: str) -> str:
    """A path as tables hold it: bytes of a name that are not UTF-8 are escaped."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _expand(name: str) -> Iterable[str]:
    path = Path(name)
    if path.is_dir():
        return map(str, _audio_below(path))
    if glob.has_magic(name) and not path.exists():
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - may be absolute
        if matches:
            return chain.from_iterable(map(_expand, matches))
    return [name]


def _audio_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
