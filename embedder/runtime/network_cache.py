"""Converted networks on disk, between processes: one folder each, named by a hash of its contents.

A folder appears at once, by a rename. Processes that write the same network at the same time, or
die while they write, therefore leave a whole folder or none. A hash beside the files shows that
what is read is what was written. All folders together have a bounded size; when it is exceeded,
those that were used longest ago are removed.
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

MAX_BYTES: Final = 2 << 30
GRAPH: Final = "network.xml"
WEIGHTS: Final = "network.bin"
HASH: Final = "network.blake3"
# How a saved graph names a layer, and what is added after it to ask for kernels.
LAYER: Final = re.compile(r'<layer [^>]*type="(?P<type>\w+)"[^>]*>')
PRIORITY: Final = (
    '<rt_info><attribute name="primitives_priority" version="0" value="{}" /></rt_info>'
)


def read(core: Any, folder: Path) -> Any | None:
    """The network in a folder; None if there is no folder, or it is damaged."""
    try:
        if not folder.is_dir():
            return None
        if (folder / HASH).read_text("ascii") == _hash(folder):
            model = core.read_model(folder / GRAPH)
            with suppress(OSError):  # the folder belongs to another user
                os.utime(folder)
            return model
        reason = "its hash is another"
    except (OSError, ValueError, RuntimeError) as error:  # OpenVINO's errors are RuntimeErrors
        reason = str(error)
    log.warning("%s is damaged or cannot be read, and is made anew: %s", folder, reason)
    return None


def write(core: Any, model: Any, folder: Path, kernels: Mapping[str, str]) -> Any:
    """Write a network into a new folder, and return it as it is read from there.

    Raises
    ------
    OSError : the folder cannot be written.
    """
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with _temporary(parent) as temporary:
        written = _written(core, model, temporary, kernels)
        (temporary / HASH).write_text(_hash(temporary), "ascii")
        temporary.chmod(0o755)
        _move(temporary, folder)
    prune(parent, MAX_BYTES)
    return written


def passed_through(core: Any, model: Any, kernels: Mapping[str, str]) -> Any:
    """A network that asks for these kernels, which OpenVINO accepts from files alone.

    Raises
    ------
    OSError : no temporary folder can be written.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return _written(core, model, Path(folder), kernels)


def prune(parent: Path, limit: int) -> None:
    """Remove the entries used longest ago, until the rest has at most `limit` bytes."""
    total = 0
    for _, entry in sorted(_entries(parent), reverse=True):
        total += _size(entry)
        if total > limit:
            _remove(entry)


def _written(core: Any, model: Any, folder: Path, kernels: Mapping[str, str]) -> Any:
    """Save a network and read it back, which shows that the files are whole."""
    try:
        openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
        if kernels:
            _prefer(folder / GRAPH, kernels)
        return core.read_model(folder / GRAPH)
    except RuntimeError as error:  # OpenVINO raises it when a disk is full
        raise OSError(f"OpenVINO could not write it: {error}") from error


def _move(temporary: Path, folder: Path) -> None:
    """Give a folder its name, also where a damaged one or another process's has it."""
    try:
        temporary.rename(folder)
    except OSError:
        with _temporary(folder.parent) as aside:
            folder.rename(aside / folder.name)
        temporary.rename(folder)


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A folder that is removed at the end, unless it was moved away before."""
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
    """All files and folders in a folder, each with the time of its last use."""
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
    """Have layers of these types run on these kernels, where the processor has them."""

    def with_priority(layer: re.Match[str]) -> str:
        kernel = kernels.get(layer["type"])
        return layer[0] + (PRIORITY.format(kernel) if kernel else "")

    text = path.read_text("utf-8")
    path.write_text(LAYER.sub(with_priority, text), "utf-8")
