"""The version of this project, as it is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _installed() -> str:
    try:
        return version("audio-embedder")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0+source"


__version__: Final = _installed()
