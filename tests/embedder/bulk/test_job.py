"""Bulk embedding: the same numbers as the model alone, in every format, whatever fails."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedder.audio.decode import load_audio
from embedder.bulk import job as bulk
from embedder.bulk.job import BulkOptions, embed_files
from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from embedder.testing import write_wav
from tests.cli_kit import (
    MODEL,
    RATE,
    noise,
    rows,
    tiny_model,
    write_float_wav,
    write_noises,
)

Heard = dict[str, str | None]


@pytest.fixture(scope="module")
def model() -> Iterator[AudioEmbedder]:
    with tiny_model() as built:
        yield built


def run(
    model: AudioEmbedder, files: list[Path], output: Path, options: BulkOptions | None = None
) -> Heard:
    heard: Heard = {}
    names = [str(file) for file in files]
    embed_files(model, names, output, options or BulkOptions(workers=0), heard.__setitem__)
    assert not output.with_name(f"{output.name}.parts").exists()
    return heard


def test_scenes_are_those_of_the_model_alone(model: AudioEmbedder, tmp_path: Path) -> None:
    files = write_noises(tmp_path, [1.0, 10.0, 0.5, 1.0, 25.3, 10.0, 1.0, 1 / RATE])
    heard = run(model, files, tmp_path / "out.parquet", BulkOptions(workers=2))
    assert heard == {str(file): None for file in files}
    table = rows(tmp_path / "out.parquet")
    assert [row["path"] for row in table] == [str(file) for file in files]
    for row, file in zip(table, files, strict=True):
        audio = load_audio(file, RATE)
        assert row["seconds"] == pytest.approx(audio.size / RATE)
        alone = model.scene(audio)[0].numpy()
        assert np.linalg.norm(row["embedding"] - alone) <= 1e-5 * np.linalg.norm(alone)
        assert row["error"] is None


def test_window_and_hop_are_passed_on(model: AudioEmbedder, tmp_path: Path) -> None:
    [file] = write_noises(tmp_path, [3.0])
    run(model, [file], tmp_path / "a.parquet", BulkOptions(window_ms=1000, hop_ms=500, workers=0))
    ours = rows(tmp_path / "a.parquet")[0]["embedding"]
    assert np.allclose(
        ours, model.scene(load_audio(file, RATE), window_ms=1000, hop_ms=500)[0], rtol=1e-4
    )
    assert not np.allclose(ours, model.scene(load_audio(file, RATE))[0], rtol=1e-4)
    with pytest.raises(BadRequest, match="hop_ms"):
        run(model, [file], tmp_path / "b.parquet", BulkOptions(hop_ms=1e9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.wav", "a.parquet"]


def test_the_table_says_what_it_holds(model: AudioEmbedder, tmp_path: Path) -> None:
    run(model, write_noises(tmp_path, [0.2]), tmp_path / "out.parquet")
    schema = pq.read_schema(tmp_path / "out.parquet")
    about = json.loads(schema.metadata[b"embedder"])
    assert about["model"] == MODEL
    assert about["taps"] == list(model.taps)
    assert {"weights_sha256", "version", "kind", "window_ms", "hop_ms"} <= set(about)
    assert schema.field("embedding").type.list_size == model.scene_embedding_size


def test_a_file_that_fails_is_a_row_with_its_error(model: AudioEmbedder, tmp_path: Path) -> None:
    good, other = write_noises(tmp_path, [0.3, 0.3])
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    # 16 kHz square wave just below the limit: resampling overshoots it, after decoding.
    square = np.tile(np.repeat([9_900.0, -9_900.0], 8), 300)
    loud = write_float_wav(tmp_path / "loud.wav", square, RATE // 2)
    files = [good, text, loud, tmp_path / "missing.wav", other]
    heard = run(model, files, tmp_path / "out.parquet", BulkOptions(workers=1))
    assert [file.name for file in files if heard[str(file)] is not None] == [
        *("text.wav", "loud.wav", "missing.wav")
    ]
    for row, file in zip(rows(tmp_path / "out.parquet"), files, strict=True):
        assert (row["path"], row["error"]) == (str(file), heard[str(file)])
        assert (row["embedding"] is None) == (row["seconds"] is None) == (row["error"] is not None)


def test_one_clip_at_fault_does_not_fail_its_batch(model: AudioEmbedder, tmp_path: Path) -> None:
    square = np.tile(np.repeat([9_900.0, -9_900.0], 8), 300)
    loud = write_float_wav(tmp_path / "a.wav", square, RATE // 2)
    length = load_audio(loud, RATE).size
    good = write_wav(tmp_path / "b.wav", noise(length / RATE))
    heard = run(model, [loud, good], tmp_path / "out.parquet")
    assert heard[str(good)] is None
    assert "samples reach" in str(heard[str(loud)])


@pytest.mark.parametrize("part_bytes", [1, 1 << 24])
def test_timestamps_are_those_of_the_model_alone(
    model: AudioEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(bulk, "PART_BYTES", part_bytes)
    files = write_noises(tmp_path, [0.4, 31.0, 0.01])
    run(model, files, tmp_path / "out.parquet", BulkOptions(timestamps=True, workers=1))
    table = rows(tmp_path / "out.parquet")
    for file in files:
        mine = [row for row in table if row["path"] == str(file)]
        vectors, ms = model.timestamps(load_audio(file, RATE))
        assert [row["ms"] for row in mine] == ms[0].tolist()
        ours = np.array([row["embedding"] for row in mine])
        assert np.linalg.norm(ours - vectors[0].numpy()) <= 1e-5 * np.linalg.norm(ours)
    assert [row["path"] for row in table] == sorted(row["path"] for row in table)


@pytest.mark.parametrize("part_bytes", [1, 1 << 24])
def test_a_file_that_fails_late_leaves_no_timestamps(
    model: AudioEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(bulk, "PART_BYTES", part_bytes)
    samples = noise(40).astype(np.float32) / 32_768
    samples[-1000] = np.nan
    broken = write_float_wav(tmp_path / "broken.wav", samples)
    good = write_wav(tmp_path / "good.wav", noise(0.1))
    options = BulkOptions(timestamps=True, workers=0)
    heard = run(model, [broken, good], tmp_path / "out.parquet", options)
    table = rows(tmp_path / "out.parquet")
    assert [(row["path"], row["ms"]) for row in table] == [
        *((str(broken), None), (str(good), 0), (str(good), 50), (str(good), 100))
    ]
    assert "nan" in str(heard[str(broken)])


@pytest.mark.parametrize("timestamps", [False, True])
def test_every_format_holds_the_same(
    model: AudioEmbedder, tmp_path: Path, timestamps: bool
) -> None:
    files = [*write_noises(tmp_path, [0.3, 0.2]), tmp_path / "missing.wav"]
    for suffix in (".parquet", ".npz", ".jsonl", ".csv"):
        options = BulkOptions(timestamps=timestamps, workers=0)
        run(model, files, tmp_path / f"out{suffix}", options)
    table = rows(tmp_path / "out.parquet")
    assert len(table) == (13 if timestamps else 3)
    where = "ms" if timestamps else "seconds"
    nothing = [np.nan] * model.scene_embedding_size
    vectors = np.array([row["embedding"] or nothing for row in table], np.float32)
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["path"].tolist() == [row["path"] for row in table]
        assert arrays["error"].tolist() == [row["error"] or "" for row in table]
        assert np.array_equal(
            arrays[where], np.array([row[where] for row in table], np.float64), equal_nan=True
        )
        assert np.array_equal(arrays["embedding"], vectors, equal_nan=True)
        assert json.loads(str(arrays["about"]))["model"] == MODEL
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{**line, "embedding": None} for line in lines] == [
        {**row, "embedding": None} for row in table
    ]
    read = np.array([line["embedding"] or nothing for line in lines], np.float32)
    assert np.array_equal(read, vectors, equal_nan=True)
    with (tmp_path / "out.csv").open(newline="") as file:
        header, *lines_csv = csv.reader(file)
    assert header[:7] == ["path", where, "error", "note", "bytes", "modified", "e0"]
    read = np.array([[value or "nan" for value in line[6:]] for line in lines_csv], np.float32)
    assert np.array_equal(read, vectors, equal_nan=True)
    assert [line[:1] + line[2:3] for line in lines_csv] == [
        [row["path"], row["error"] or ""] for row in table
    ]
