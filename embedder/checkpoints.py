"""Find, fetch, verify, read and write checkpoints.

A checkpoint is a plain state dict with the published names. It is a `.pt` file, which is read with
`weights_only=True`, or a `.safetensors` file. The header of the latter may also describe the model
(network, front end, labels, taps), so that a fine-tuned model needs no row in the zoo.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import platformdirs
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from embedder.described import labels_from_json, spec_from_json, spec_to_json
from embedder.downloads import download
from embedder.errors import DownloadFailed, WeightsError, WeightsMismatch, WeightsNotFound
from embedder.files import atomic
from embedder.zoo import ModelSpec

WEIGHTS_DIR_VARIABLE: Final = "EMBEDDER_WEIGHTS_DIR"
METADATA_KEY: Final = "embedder"
_CHUNK: Final = 1 << 20
_REASON: Final = 200  # characters of a parser's message that are shown


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights that were verified. `spec` and `labels` are set if the file describes its model."""

    state: Mapping[str, Tensor]
    sha256: str
    spec: ModelSpec | None = None
    labels: tuple[str, ...] | None = None


def cache_dir() -> Path:
    """The directory of downloads, in the user's cache directory: ~/.cache/embedder on Linux."""
    return platformdirs.user_cache_path("embedder")


def weights_dirs() -> list[Path]:
    """The directories that EMBEDDER_WEIGHTS_DIR lists as PATH does, then the cache."""
    named = os.environ.get(WEIGHTS_DIR_VARIABLE, "").split(os.pathsep)
    return [*(Path(entry).expanduser() for entry in named if entry), cache_dir()]


def find(spec: ModelSpec) -> Path | None:
    """The path of a model's checkpoint in the package or the weights directories, or None.

    The file is not verified.
    """
    if spec.bundled:
        return _package_data(spec.weights)
    stem = Path(spec.weights).stem
    for directory in weights_dirs():
        for candidate in (directory / spec.weights, directory / f"{stem}.safetensors"):
            if candidate.is_file():
                return candidate
    return None


def load(spec: ModelSpec, path: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Read and verify the weights of a model.

    They come from `path` if it is given; else from the directories of EMBEDDER_WEIGHTS_DIR, the
    user's cache or the published URL, whichever has them first.

    Raises
    ------
    WeightsNotFound, DownloadFailed : the message names the file, its URL and where to put it.
    WeightsMismatch : the file is damaged, or not the one expected.
    """
    if path is not None:
        explicit = Path(path).expanduser()
        if not explicit.is_file():
            raise WeightsNotFound(f"no weights file {str(path)!r}; name an existing checkpoint")
        return read(explicit)
    file = find(spec) or fetch(spec)
    return read(file, _expected_hash(spec, file))


def read(path: Path, sha256: str | None = None) -> Checkpoint:
    """Read a file; if `sha256` is given, only a file with this hash.

    Raises WeightsNotFound if the file cannot be read, and WeightsMismatch for any content that is
    no checkpoint, whatever error the parser of that content raises.
    """
    try:
        actual = file_sha256(path)
    except OSError as error:
        raise WeightsNotFound(f"{path} cannot be read ({error}); check its permissions") from error
    if sha256 is not None and actual != sha256:
        raise WeightsMismatch(
            f"{path} has SHA-256 {actual}, expected {sha256}; delete it and fetch it again"
        )
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, actual)
        return Checkpoint(_read_pickled(path), actual)
    except WeightsError:
        raise
    except Exception as error:  # hostile files make parsers raise errors of any kind
        raise WeightsMismatch(
            f"{path} is not a readable checkpoint ({type(error).__name__}); "
            "use a published .pt file or a .safetensors file"
        ) from error


def read_described(path: Path) -> Checkpoint:
    """Read a checkpoint that must describe its own model."""
    if not path.is_file():
        raise WeightsNotFound(f"no checkpoint {str(path)!r}; name an existing .safetensors file")
    checkpoint = read(path)
    if checkpoint.spec is None:
        raise WeightsMismatch(
            f"{path} does not say which model it is; load it as weights of a named model"
        )
    return checkpoint


def save(
    path: str | os.PathLike[str],
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    labels: tuple[str, ...],
    *,
    half: bool = False,
) -> None:
    """Write a safetensors checkpoint that describes its model; `AudioEmbedder.load` takes it.

    With `half`, floating-point tensors are stored as fp16.
    """
    tensors = {
        name: (t.half() if half and t.is_floating_point() else t).detach().cpu().contiguous()
        for name, t in state.items()
    }
    header = {METADATA_KEY: json.dumps({**spec_to_json(spec), "labels": labels})}
    with atomic(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=header)


def fetch(spec: ModelSpec, directory: Path | None = None) -> Path:
    """Download and verify the published checkpoint; return its path.

    Raises DownloadFailed, or WeightsMismatch if the file has another hash than the published one.
    """
    if spec.bundled:
        return _package_data(spec.weights)
    target = (directory or cache_dir()) / spec.weights
    try:
        if spec.sha256 is None:
            download(spec.url, target, inspect=lambda file: _record_hash(file, target))
        else:
            download(spec.url, target, spec.sha256)
    except OSError as error:
        raise DownloadFailed(
            f"{spec.weights} is neither in {', '.join(map(str, weights_dirs()))} nor could it be "
            f"downloaded ({type(error).__name__}: {error}). Get {spec.url} and put it into "
            f"{cache_dir()} or a directory named in {WEIGHTS_DIR_VARIABLE}"
        ) from error
    except ValueError as error:
        raise WeightsMismatch(
            f"{spec.url} is another file than the published one; nothing was kept ({error})"
        ) from error
    return target


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _expected_hash(spec: ModelSpec, path: Path) -> str | None:
    """The published hash, else the hash that was recorded at the download, else None."""
    if path.name != spec.weights:  # a safetensors file that the user converted
        return None
    record = _hash_record(path)
    if spec.sha256 is None and record.is_file():
        noted = re.match(rb"[0-9a-f]{64}\b", record.read_bytes())
        if noted is None:
            raise WeightsMismatch(f"{record} holds no SHA-256; delete it and {path.name} with it")
        return noted[0].decode()
    return spec.sha256


def _record_hash(file: Path, target: Path) -> None:
    """Note the hash of a downloaded file beside `target`, before it gets this name."""
    _hash_record(target).write_text(f"{file_sha256(file)}  {target.name}\n")


def _package_data(name: str) -> Path:
    return Path(str(resources.files("embedder"))) / "data" / name


def _hash_record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a `.pt` file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch does not compress: an archive that grows when it is read is a bomb.
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise WeightsMismatch(f"{path} is larger inside than outside; torch writes none so")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(map(_is_plain, state.items())):
        raise WeightsMismatch(f"{path} holds no plain state dict of tensors; save one")
    return state


def _is_plain(item: tuple[Any, Any]) -> bool:
    name, value = item
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized or value.is_complex())
    )


def _read_safetensors(path: Path, sha256: str) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {n: t.float() if t.is_floating_point() else t for n, t in state.items()}
    if METADATA_KEY not in metadata:
        return Checkpoint(state, sha256)
    try:
        description: dict[str, Any] = json.loads(metadata[METADATA_KEY])
        spec = spec_from_json(description)
        return Checkpoint(state, sha256, spec, labels_from_json(description["labels"], spec))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = str(error)[:_REASON]
        raise WeightsMismatch(
            f"{path} describes no model that this version knows ({reason}); "
            "write it again with `embedder.checkpoints.save`"
        ) from error
