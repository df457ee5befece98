"""What audio is read from: paths, bytes and files; everything else is refused by name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from embedder.audio.decode import (
    load_audio,
    stream_audio,
)
from embedder.errors import BadAudio, BadRequest
from tests.encodings import RATE, encoded, sine, wav


def test_all_kinds_of_source_agree(tmp_path: Path) -> None:
    data = encoded(sine(0.5, 44_100), 44_100, "flac", "flac")
    path = tmp_path / "a.wav"  # a misleading name
    path.write_bytes(data)
    expected = load_audio(data, RATE)
    with path.open("rb") as file:
        file.seek(100)
        for source in (path, str(path), bytearray(data), memoryview(data), io.BytesIO(data), file):
            np.testing.assert_array_equal(load_audio(source, RATE), expected)
        assert not file.closed


def test_a_file_name_decides_nothing(tmp_path: Path) -> None:
    # Left to the name, libav takes the junk in front for a FLAC and finds nothing.
    data = np.random.default_rng(3).bytes(6000) + encoded(sine(0.2, RATE), RATE, "mp3", "mp3")
    path = tmp_path / "misnamed.flac"
    path.write_bytes(data)
    np.testing.assert_array_equal(load_audio(path, RATE), load_audio(data, RATE))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.wav", "no such file"),
        ("", "not a regular file"),
        ("pipe", "not a regular file"),
        ("nul\0.wav", "no such file"),
        ("x" * 300, "too long"),
        ("http:/localhost/a.wav", "no such file"),
        ("/dev/zero", "not a regular file"),
    ],
)
def test_what_is_no_file_is_named(tmp_path: Path, name: str, reason: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadAudio, match=reason) as caught:
        load_audio(tmp_path / name, RATE)
    assert repr(name)[1:-1] in str(caught.value)


def test_what_is_no_source_is_refused() -> None:
    for source in (None, 3, np.zeros(5), io.StringIO("RIFF"), Path(__file__).parts):
        with pytest.raises(BadRequest, match=type(source).__name__):
            load_audio(source, RATE)  # type: ignore[arg-type]


def test_a_url_and_a_closed_file_say_what_to_do() -> None:
    for url in ("https://example.org/a.wav", "S3://bucket/a.wav", "file:///tmp/a.wav"):
        with pytest.raises(BadAudio, match="is a URL, and none is fetched; download it"):
            load_audio(url, RATE)
    closed = io.BytesIO(wav(sine(0.1, RATE), RATE))
    closed.close()
    with pytest.raises(BadRequest, match="is closed; open it"):
        load_audio(closed, RATE)


def test_a_file_that_cannot_be_read_is_an_error_not_an_end() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(BadAudio, match="Input/output error"):
        load_audio(Failing(wav(sine(10.0, RATE), RATE)), RATE)


@pytest.mark.parametrize(("rate", "block"), [(0, 1.0), (-1, 1.0), (RATE, 0.0), (RATE, np.inf)])
def test_rates_and_blocks_without_meaning_are_refused(rate: int, block: float) -> None:
    with pytest.raises(BadRequest):
        next(stream_audio(wav(sine(0.1, RATE), RATE), rate, block_seconds=block))
