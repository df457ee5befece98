"""The cache of results: its keys, the form of its values, and the in-process store.

Two levels under one protocol: `upload_key` maps the bytes of an upload to the fingerprint and
length of its samples, `result_key` maps samples and everything that decides the numbers to the
result.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final, Protocol

import numpy as np
from blake3 import blake3
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


class Unavailable(Exception):
    """The store does not answer at present: compute, and do not store."""


class Cache(Protocol):
    """Byte strings by key. No method raises anything but Unavailable."""

    async def get(self, key: str) -> bytes | None:
        """The value, or None; Unavailable where the store does not answer in time."""

    def put(self, key: str, value: bytes) -> None:
        """Store at once or soon, or not at all; never waits."""

    async def close(self) -> None:
        """Finish what `put` left to do, as far as it is quick, and disconnect."""


def fingerprint(data: bytes | memoryview) -> bytes:
    """32 bytes that stand for an upload or for samples.

    BLAKE3: SHA-256 takes three times as long, and sixteen times where the processor has no
    instructions for it, which is more than decoding takes.
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
    """Where the fingerprint of an upload's samples is kept; `decoder` names versions and limits."""
    return f"embedder:pcm:{digest((SCHEMA_VERSION, upload, decoder, sample_rate))}"


def result_key(samples: bytes, model: Iterable[object], output: Iterable[object]) -> str:
    """Where a result is kept.

    `model` is all that decides the numbers of a model (`embedder.identity`), `output` all that was
    asked of it (`embedder.outputs.Output.key`).
    """
    return f"embedder:result:{digest((SCHEMA_VERSION, samples, *model, '/', *output))}"


def encode(array: NDArray[Any]) -> bytes:
    """An array behind a header that `decode` checks."""
    raw = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    payload = struct.pack(f"<{raw.ndim}I", *raw.shape) + raw.tobytes()
    return (
        _HEADER.pack(_MAGIC, _VERSION, _CODES[raw.dtype], raw.ndim, zlib.crc32(payload)) + payload
    )


def decode(value: object, max_bytes: int | None = None) -> NDArray[Any] | None:
    """The array, read-only; None if anything at all is wrong with the value.

    A store outside this process may hold whatever others put there: no bytes at all, or far more
    than the `max_bytes` of an array that this server would have stored.
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
    """Nothing is kept, and every answer says so."""

    async def get(self, key: str) -> bytes | None:  # noqa: ARG002
        """Unavailable, always."""
        raise Unavailable

    def put(self, key: str, value: bytes) -> None:
        """Forget it."""

    async def close(self) -> None:
        """Nothing to do."""


class MemoryCache:
    """The least recently used go first; keys count towards the bytes too."""

    _ENTRY_OVERHEAD: Final = 200  # a dictionary slot and two object headers, about

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._values: OrderedDict[str, bytes] = OrderedDict()

    async def get(self, key: str) -> bytes | None:
        """The value, now the most recently used."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Store, and drop the oldest until all fits."""
        if self._cost(key, value) > self.max_bytes:
            return
        self._drop(key)
        self._values[key] = value
        self.bytes += self._cost(key, value)
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._values)))

    async def close(self) -> None:
        """Nothing to do."""

    def _drop(self, key: str) -> None:
        if (value := self._values.pop(key, None)) is not None:
            self.bytes -= self._cost(key, value)

    def _cost(self, key: str, value: bytes) -> int:
        return len(key) + len(value) + self._ENTRY_OVERHEAD
