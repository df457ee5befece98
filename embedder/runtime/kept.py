"""Converted networks on disk, between processes: a folder each, under a hash of what it holds.

A folder appears at once, by a rename, so that processes that make the same network at the same
time, or die while they do, leave a whole one or none. What is read is what was written: a hash lies
beside it. All folders together have a bounded size, and those go first that were used longest ago.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from embedder.runtime.openvino_library import openvino

log = logging.getLogger(__name__)

KEPT_BYTES: Final = 2 << 30
GRAPH: Final = "network.xml"
WEIGHTS: Final = "network.bin"
HASH: Final = "network.blake3"
# How a graph's file names a layer, and what to add there.
LAYER: Final = re.compile(r'<layer [^>]*type="(?P<type>\w+)"[^>]*>')
WISH: Final = '<rt_info><attribute name="primitives_priority" version="0" value="{}" /></rt_info>'


def read(core: Any, folder: Path) -> Any | None:
    """The network kept in a folder; None where there is none, or none that is whole."""
    try:
        if not folder.is_dir():
            return None
        if (folder / HASH).read_text("ascii") == _hash(folder):
            model = core.read_model(folder / GRAPH)
            with suppress(OSError):  # another user's
                os.utime(folder)
            return model
        reason = "its hash is another"
    except (OSError, ValueError, RuntimeError) as error:  # OpenVINO's errors are RuntimeErrors
        reason = str(error)
    log.warning("%s is damaged or cannot be read, and is made anew: %s", folder, reason)
    return None


def keep(core: Any, model: Any, folder: Path, kernels: Mapping[str, str]) -> Any:
    """Write a network into a folder of its own, and give it as it is read from there.

    Raises OSError where that cannot be.
    """
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with _temporary(parent) as made:
        written = _written(core, model, made, kernels)
        (made / HASH).write_text(_hash(made), "ascii")
        made.chmod(0o755)
        _put(made, folder)
    prune(parent, KEPT_BYTES)
    return written


def passed_through(core: Any, model: Any, kernels: Mapping[str, str]) -> Any:
    """A network with its wishes for kernels, which OpenVINO takes from files alone.

    Raises OSError where no folder can be written to.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return _written(core, model, Path(folder), kernels)


def prune(parent: Path, limit: int) -> None:
    """Remove what was used longest ago, until the rest has `limit` bytes at most."""
    total = 0
    for _, entry in sorted(_entries(parent), reverse=True):
        total += _size(entry)
        if total > limit:
            _remove(entry)


def _written(core: Any, model: Any, folder: Path, kernels: Mapping[str, str]) -> Any:
    """A network as it comes back from a folder's files, which shows that they are whole."""
    try:
        openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
        if kernels:
            _prefer(folder / GRAPH, kernels)
        return core.read_model(folder / GRAPH)
    except RuntimeError as error:  # which is how OpenVINO says that a disk is full
        raise OSError(f"OpenVINO could not write it: {error}") from error


def _put(made: Path, folder: Path) -> None:
    """A rename fails where another process was faster, or where a damaged folder lies."""
    try:
        made.rename(folder)
    except OSError:
        with _temporary(folder.parent) as aside:
            folder.rename(aside / folder.name)
        made.rename(folder)


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A folder that may have been moved away when it is no longer needed."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix="."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hash(folder: Path) -> str:
    digest = blake3()
    for name in (GRAPH, WEIGHTS):
        digest.update_mmap(folder / name)
    return digest.hexdigest()


def _entries(parent: Path) -> Iterator[tuple[float, Path]]:
    """All that lies in a folder, with the time of its last use."""
    for entry in parent.iterdir():
        with suppress(OSError):  # another process removed it
            yield entry.stat().st_mtime, entry


def _size(entry: Path) -> int:
    with suppress(OSError):
        if entry.is_dir():
            return sum(file.stat().st_size for file in entry.iterdir())
        return entry.stat().st_size
    return 0


def _remove(entry: Path) -> None:
    with suppress(OSError):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


def _prefer(path: Path, kernels: Mapping[str, str]) -> None:
    """Have layers of a saved graph run on these kernels, by type, where the processor has them."""

    def wished(layer: re.Match[str]) -> str:
        wish = kernels.get(layer["type"])
        return layer[0] + (WISH.format(wish) if wish else "")

    text = path.read_text("utf-8")
    path.write_text(LAYER.sub(wished, text), "utf-8")
