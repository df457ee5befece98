"""Keep results that were computed once: keys, encoded values, and the in-process cache.

There are two levels under one protocol: `upload_key` leads from the bytes of an upload to the
fingerprint and length of its samples, `result_key` from samples and everything that decides the
numbers to the result.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zlib
from collections.abc import Iterable
from typing import Any, Final, Protocol

import numpy as np
from blake3 import blake3
from cachetools import LRUCache
from numpy.typing import NDArray

# Raise when the same audio and options would give other numbers than before.
SCHEMA_VERSION: Final = 1

_HEADER: Final = struct.Struct("<4sBBBx I")  # magic, version, dtype, dimensions, crc32
_LENGTH: Final = struct.Struct("<Q")
_MAGIC: Final = b"EMBV"
_VERSION: Final = 1
_DTYPES: Final[dict[int, np.dtype[Any]]] = {1: np.dtype("<f4"), 2: np.dtype("u1")}
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_DIMENSIONS: Final = 4
_ENTRY_OVERHEAD: Final = 360  # bytes of a key, its slots in three dictionaries, object headers


class Unavailable(Exception):
    """The cache does not answer now: compute the result, and do not store it."""


class Cache(Protocol):
    """Byte strings by key. Its methods raise nothing but Unavailable."""

    async def get(self, key: str) -> bytes | None:
        """The value, or None; Unavailable where the store does not answer in time."""

    def put(self, key: str, value: bytes) -> None:
        """Store the value now, soon or not at all, without waiting."""

    async def close(self) -> None:
        """Finish storing if that is quick, and disconnect."""


def fingerprint(data: bytes | memoryview) -> bytes:
    """Hash an upload or samples to 32 bytes.

    The hash is BLAKE3. SHA-256 takes three times as long, and sixteen times where the processor
    has no instructions for it, which is more than decoding takes.
    """
    return blake3(data).digest()


def digest(fields: Iterable[object]) -> str:
    """Hex BLAKE3 over length-prefixed fields, so that no two lists of fields run together."""
    parts: list[bytes] = []
    for field in fields:
        data = field if isinstance(field, bytes) else str(field).encode()
        parts += (_LENGTH.pack(len(data)), data)
    return blake3(b"".join(parts)).hexdigest()


def upload_key(upload: bytes, decoder: str, sample_rate: int) -> str:
    """The key of the fingerprint of an upload's samples.

    `decoder` holds the versions and limits of the decoder.
    """
    return f"embedder:pcm:{digest((SCHEMA_VERSION, upload, decoder, sample_rate))}"


def result_key(samples: bytes, model: Iterable[object], output: Iterable[object]) -> str:
    """The key of a result.

    `model` is all that decides the numbers of a model (`embedder.identity`), `output` all that was
    asked of it (`embedder.outputs.Output.key`).
    """
    return f"embedder:result:{digest((SCHEMA_VERSION, samples, *model, '/', *output))}"


def encode(array: NDArray[Any]) -> bytes:
    """The bytes of an array, after a header that `decode` checks."""
    raw = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    payload = struct.pack(f"<{raw.ndim}I", *raw.shape) + raw.tobytes()
    return (
        _HEADER.pack(_MAGIC, _VERSION, _CODES[raw.dtype], raw.ndim, zlib.crc32(payload)) + payload
    )


def decode(value: object, max_bytes: int | None = None) -> NDArray[Any] | None:
    """The array, read-only; None if anything is wrong with the value.

    A store outside this process may hold whatever others put there: something else than bytes, or
    far more than `max_bytes`, the largest array that this server would have stored.
    """
    if not isinstance(value, bytes) or len(value) < _HEADER.size:
        return None
    if max_bytes is not None and len(value) > max_bytes + _HEADER.size + 4 * _MAX_DIMENSIONS:
        return None
    magic, version, code, dimensions, crc = _HEADER.unpack_from(value)
    if (magic, version) != (_MAGIC, _VERSION) or code not in _DTYPES:
        return None
    start = _HEADER.size + 4 * dimensions
    if dimensions > _MAX_DIMENSIONS or len(value) < start:
        return None
    shape = struct.unpack_from(f"<{dimensions}I", value, _HEADER.size)
    dtype = _DTYPES[code]
    if len(value) - start != math.prod(shape) * dtype.itemsize:
        return None
    if zlib.crc32(memoryview(value)[_HEADER.size :]) != crc:
        return None
    array: NDArray[Any] = np.ndarray(shape, dtype, value, start)
    return array


class NoCache:
    """Keeps nothing, so that every answer is computed."""

    async def get(self, key: str) -> bytes | None:  # noqa: ARG002
        """Raise Unavailable."""
        raise Unavailable

    def put(self, key: str, value: bytes) -> None:
        """Store nothing."""

    async def close(self) -> None:
        """Nothing to do."""


class MemoryCache:
    """Values in this process; the least recently used leave first."""

    def __init__(self, max_bytes: int) -> None:
        self._values: LRUCache[str, bytes] = LRUCache(max_bytes, getsizeof=_entry_bytes)

    @property
    def held(self) -> int:
        """Bytes of memory that the entries take, at most `max_bytes`."""
        return round(self._values.currsize)

    async def get(self, key: str) -> bytes | None:
        """The value, which is now the most recently used; None where there is none."""
        return self._values.get(key)

    def put(self, key: str, value: bytes) -> None:
        """Store the value and drop the least recently used ones, until all fit."""
        with contextlib.suppress(ValueError):  # larger than the whole cache: not stored
            self._values[key] = value

    async def close(self) -> None:
        """Nothing to do."""


def _entry_bytes(value: bytes) -> int:
    return len(value) + _ENTRY_OVERHEAD
