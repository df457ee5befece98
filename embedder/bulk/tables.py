"""The rows of a bulk job as Parquet, npz, JSON lines or CSV, in memory that does not grow.

A row is a clip (path, seconds, embedding) or, with timestamps, a moment of a clip (path, ms,
embedding). Each row also has the file's size and time of change, which tell a resumed job whether
the file has changed since. A file that failed is one row with its error and no embedding. If
something is missing of a file that did not fail, a `note` in its last row says so.

A table on disk is a list of Parquet parts until `WRITERS` make one file of them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedder.bulk.inputs import Stamp

METADATA_KEY: Final = b"embedder"
# Reading or writing a row group takes ten times this memory, for levels and pages.
ROW_GROUP_BYTES: Final = 8 << 20
_READ_ROWS: Final = 1024
_NUMBERS: Final = {pa.float64(): np.dtype("<f8"), pa.int64(): np.dtype("<i8")}


@dataclass(frozen=True, slots=True)
class RowFormat:
    """The columns of a job's table; `about` is all that decides its numbers."""

    about: Mapping[str, Any]
    size: int  # values of an embedding
    timestamps: bool

    @property
    def schema(self) -> pa.Schema:
        """The columns, and `about` as JSON under METADATA_KEY."""
        where = ("ms", pa.float64()) if self.timestamps else ("seconds", pa.float64())
        vector = ("embedding", pa.list_(pa.float32(), self.size))
        about = [("error", pa.string()), ("note", pa.string())]
        stamp = [("bytes", pa.int64()), ("modified", pa.float64())]
        columns = [("path", pa.string()), where, vector, *about, *stamp]
        return pa.schema(columns, {METADATA_KEY: json.dumps(dict(self.about))})

    def rows(
        self,
        path: str,
        stamp: Stamp,
        where: NDArray[np.float64],
        vectors: NDArray[np.float32],
    ) -> pa.Table:
        """The rows of one file: `where` is seconds or milliseconds [n], `vectors` are [n, size]."""
        n = len(where)
        values = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        columns = [
            pa.array([path] * n, pa.string()),
            pa.array(where, pa.float64()),
            pa.FixedSizeListArray.from_arrays(values, self.size),
            pa.nulls(n, pa.string()),
            pa.nulls(n, pa.string()),
            pa.array([stamp.bytes] * n, pa.int64()),
            pa.array([stamp.modified] * n, pa.float64()),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def failure(self, path: str, stamp: Stamp, error: str) -> pa.Table:
        """The row of a file that failed."""
        row = {"path": path, "error": error, **asdict(stamp)}
        return pa.Table.from_pylist([row], schema=self.schema)


def noted(rows: pa.Table, note: str | None) -> pa.Table:
    """The same rows, with a note in the last one."""
    notes = pa.array([None] * (len(rows) - 1) + [note], pa.string())
    return rows.set_column(rows.schema.get_field_index("note"), rows.schema.field("note"), notes)


def read_about(path: Path) -> dict[str, Any] | None:
    """The `about` of a Parquet file; None for a file that we did not write."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    about: dict[str, Any] | None = json.loads(metadata.get(METADATA_KEY, b"null"))
    return about


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer for parts and for tables."""
    # Paths and errors repeat, so that a dictionary pays; embeddings hardly do.
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["path", "error"])


def batches(parts: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of all parts, at most _READ_ROWS at a time."""
    for part in parts:
        # pre_buffer=True would read the whole file.
        with pq.ParquetFile(part, pre_buffer=False) as file:
            for batch in file.iter_batches(_READ_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])


def plain_rows(names: Sequence[str], parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The named columns of every row; `embedding` is an array [size], or None with an error."""
    for table in batches(parts):
        rows = table.drop_columns("embedding").to_pylist()
        for row, vector in zip(rows, _vectors(table["embedding"]), strict=True):
            embedding = vector if row["error"] is None else None
            yield {name: row.get(name, embedding) for name in names}


def write_parquet(target: Path, schema: pa.Schema, parts: Sequence[Path]) -> None:
    """Write a Parquet file, in row groups of about ROW_GROUP_BYTES."""
    with parquet_writer(target, schema) as writer:
        held: list[pa.Table] = []
        size = 0
        for table in batches(parts):
            held.append(table)
            size += table.nbytes
            if size >= ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(held))
                held, size = [], 0
        if held:
            writer.write_table(pa.concat_tables(held))


def write_jsonl(target: Path, schema: pa.Schema, parts: Sequence[Path]) -> None:
    """Write one JSON object a line, for each row; missing values are null."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    with target.open("wb") as file:
        for row in plain_rows(schema.names, parts):
            file.write(orjson.dumps(row, option=options))


def write_csv(target: Path, schema: pa.Schema, parts: Sequence[Path]) -> None:
    """Write path, seconds or ms, error, ..., then each value as e0, e1, ...; missing is empty."""
    plain = [field for field in schema if field.name != "embedding"]
    size = schema.field("embedding").type.list_size
    numbers = [pa.field(f"e{index}", pa.float32()) for index in range(size)]
    wide = pa.schema([*plain, *numbers])
    with pyarrow.csv.CSVWriter(target, wide) as writer:
        for table in batches(parts):
            missing = table["embedding"].is_null().to_numpy()
            columns = [
                pa.array(column, pa.float32(), mask=missing)
                for column in _vectors(table["embedding"]).T
            ]
            arrays = [*(table[field.name] for field in plain), *columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=wide))


def write_npz(target: Path, schema: pa.Schema, parts: Sequence[Path]) -> None:
    """Write an array for each column, all of one length; missing values are NaN, -1 or "".

    The array "about" holds the schema's metadata as JSON.
    """
    n_rows = sum(pq.read_metadata(part).num_rows for part in parts)
    with zipfile.ZipFile(target, "w") as archive:
        for name in schema.names:
            dtype, width = _array_type(name, schema, parts)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": dtype.str, "fortran_order": False, "shape": (n_rows, *width)}
                np.lib.format.write_array_header_2_0(member, header)
                for table in batches(parts, [name]):
                    member.write(_dense(table[name], dtype).tobytes())
        with archive.open("about.npy", "w") as member:
            about = np.array(schema.metadata[METADATA_KEY].decode())
            np.lib.format.write_array(member, about, allow_pickle=False)


WRITERS: Final[Mapping[str, Callable[[Path, pa.Schema, Sequence[Path]], None]]] = MappingProxyType(
    {".parquet": write_parquet, ".npz": write_npz, ".jsonl": write_jsonl, ".csv": write_csv}
)


def _vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Embeddings [n, size]; a missing one is a row of NaN."""
    size = column.type.list_size
    dense = np.full((len(column), size), np.nan, np.float32)
    valid = column.is_valid().to_numpy()
    dense[valid] = column.drop_null().combine_chunks().flatten().to_numpy().reshape(-1, size)
    return dense


def _array_type(
    name: str, schema: pa.Schema, parts: Sequence[Path]
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The numpy type of a column, and the shape of its value in one row."""
    kind = schema.field(name).type
    if pa.types.is_fixed_size_list(kind):
        return np.dtype("<f4"), (kind.list_size,)
    if kind in _NUMBERS:
        return _NUMBERS[kind], ()
    texts = (text for table in batches(parts, [name]) for text in table[name].to_pylist())
    longest = max((len(text or "") for text in texts), default=0)
    return np.dtype(f"<U{max(1, longest)}"), ()


def _dense(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A column as one array, with NaN, -1 or "" for missing values."""
    if dtype.kind == "U":
        return np.array(["" if text is None else text for text in column.to_pylist()], dtype)
    if pa.types.is_fixed_size_list(column.type):
        return _vectors(column)
    if dtype.kind == "i":
        column = column.fill_null(-1)
    values: NDArray[Any] = column.to_numpy().astype(dtype)
    return values
