"""`embed_files`: the road of `embedder embed`, from Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedder import AudioEmbedder, BadRequest, embed_files
from tests.cli_kit import rows, tiny_model, write_noises


@pytest.fixture(scope="module")
def model() -> Iterator[AudioEmbedder]:
    with tiny_model() as built:
        yield built


def test_a_table_is_the_commands(model: AudioEmbedder, tmp_path: Path) -> None:
    files = write_noises(tmp_path / "sounds", [0.3, 0.2])
    (tmp_path / "sounds" / "broken.wav").write_text("no audio")
    output = tmp_path / "out.parquet"
    told: dict[str, str | None] = {}
    errors = embed_files(model, tmp_path / "sounds", output, workers=0, on_file=told.__setitem__)
    assert errors == told
    assert [Path(path).name for path, error in errors.items() if error] == ["broken.wav"]
    table = rows(output)
    assert [row["path"] for row in table] == [
        *map(str, files),
        str(files[0].with_name("broken.wav")),
    ]
    assert np.allclose(table[0]["embedding"], model.scene(files[0])[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(BadRequest, match="--resume adds"):
        embed_files(model, files, output, workers=0)
    assert embed_files(model, files, output, workers=0, existing="resume") == dict.fromkeys(
        map(str, files)
    )


@pytest.mark.parametrize("timestamps", [False, True])
def test_rows_are_those_of_the_model_alone(
    model: AudioEmbedder, tmp_path: Path, timestamps: bool
) -> None:
    files = write_noises(tmp_path, [0.2, 0.3])
    given = [*files, tmp_path / "missing.wav"]
    made = list(embed_files(model, given, timestamps=timestamps, hop_ms=100, workers=0))
    where = "ms" if timestamps else "seconds"
    assert all(list(row) == ["path", where, "embedding", "error", "note"] for row in made)
    assert dict.fromkeys(row["path"] for row in made) == dict.fromkeys(map(str, given))
    assert "no such file" in made[-1]["error"]
    assert made[-1]["embedding"] is None
    for file in files:
        ours = [row for row in made if row["path"] == str(file)]
        if timestamps:
            vectors, ms = model.timestamps(file, hop_ms=100)
            assert [row["ms"] for row in ours] == ms[0].tolist()
            expected = vectors[0].numpy()
        else:
            expected = model.scene(file, hop_ms=100).numpy()
        embeddings = np.stack([row["embedding"] for row in ours])
        assert embeddings.dtype == np.float32
        assert np.linalg.norm(embeddings - expected) <= 1e-5 * np.linalg.norm(expected)


def test_what_makes_no_sense_is_refused_at_once(model: AudioEmbedder, tmp_path: Path) -> None:
    files = write_noises(tmp_path, [0.1])
    for options in ({"window_ms": 0}, {"hop_ms": 0}, {"timestamps": True, "window_ms": 0}):
        with pytest.raises(BadRequest, match="is 0; choose 1 to"):
            embed_files(model, files, **options)  # type: ignore[call-overload]
    with pytest.raises(BadRequest, match="no audio files"):
        embed_files(model, [])
    with pytest.raises(BadRequest, match="name a file in"):
        embed_files(model, str(files[0]), tmp_path / "out.doc")
