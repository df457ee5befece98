"""Decoding never takes more bytes, samples, seconds or memory than its limits say."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from embedder.audio import decode as audio
from embedder.audio import libav, mono
from embedder.audio.decode import (
    HTTP_LIMITS,
    OPEN_LIMITS,
    DecodeLimits,
    load_audio,
    stream_audio,
)
from embedder.errors import AudioTooLarge
from tests.encodings import RATE, encoded, sine, wav
from tests.interpreter import in_subprocess
from tests.shared import BAD, needs_shared


@pytest.fixture(scope="module")
def silent_hour() -> bytes:
    """A bomb: 0.7 MB of FLAC, an hour of sound."""
    return encoded(np.zeros((1, 8_000 * 3_600), np.float32), 8_000, "flac", "flac")


class CountingFile(io.BytesIO):
    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_seconds_are_counted_while_decoding() -> None:
    minute = CountingFile(wav(np.zeros((1, 60 * 44_100)), 44_100))
    with pytest.raises(AudioTooLarge, match="2 seconds"):
        load_audio(minute, RATE, DecodeLimits(max_seconds=2))
    assert minute.count < len(minute.getvalue()) / 10
    assert load_audio(minute, RATE, DecodeLimits(max_seconds=60)).size == 60 * RATE


def test_a_forged_rate_does_not_hide_samples() -> None:
    forged = wav(np.zeros((2, 500_000)), 500_000)
    with pytest.raises(AudioTooLarge, match="999,999 decoded samples"):
        load_audio(forged, RATE, DecodeLimits(max_seconds=2, max_samples=999_999))
    assert load_audio(forged, RATE, DecodeLimits(max_seconds=2, max_samples=10**6)).size == RATE


def test_bytes_are_counted_before_decoding(tmp_path: Path) -> None:
    data = wav(sine(0.5, RATE), RATE)
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(AudioTooLarge, match="bytes"):
            load_audio(source, RATE, DecodeLimits(max_bytes=len(data) - 1))
        assert load_audio(source, RATE, DecodeLimits(max_bytes=len(data))).size == RATE // 2


def test_the_clock_counts_decoding_but_not_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    for module in (audio, libav):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    source = wav(np.zeros((1, 10 * RATE)), RATE)
    limits = DecodeLimits(max_wall_seconds=5)
    for _ in stream_audio(source, RATE, limits, block_seconds=1):
        clock[0] += 100  # a slow reader
    monkeypatch.setattr(mono, "check_samples", lambda _: clock.__setitem__(0, clock[0] + 6))
    slow = encoded(np.zeros((1, 10 * RATE)), RATE, "wav", "pcm_f32le")
    with pytest.raises(AudioTooLarge, match="5 s"):
        load_audio(slow, RATE, limits)


def test_http_refuses_a_bomb_that_streams_in_flat_memory(
    silent_hour: bytes, tmp_path: Path
) -> None:
    assert len(silent_hour) < 1_000_000
    with pytest.raises(AudioTooLarge, match="600 seconds"):
        load_audio(silent_hour, RATE, HTTP_LIMITS)
    path = tmp_path / "hour.flac"
    path.write_bytes(silent_hour)
    seconds, megabytes = streamed(path)
    assert seconds == 3600
    assert megabytes < 40  # the hour itself is 460 MB


@needs_shared
@pytest.mark.slow
def test_ten_hours_stream_in_flat_memory() -> None:
    seconds, megabytes = streamed(BAD / "ten_hours_of_silence.flac")
    assert seconds == 36_000
    assert megabytes < 40


STREAMED = """
import sys
from embedder.audio.decode import stream_audio
from eval.bench.memory import peak_megabytes

before = peak_megabytes()
samples = sum(block.size for block in stream_audio(sys.argv[1], 32_000))
print(samples / 32_000, peak_megabytes() - before)
"""


def streamed(path: Path) -> tuple[float, float]:
    """Seconds of audio, and megabytes that streaming took."""
    seconds, megabytes = in_subprocess(STREAMED, str(path)).split()
    return float(seconds), float(megabytes)


def test_the_open_limits_take_a_day() -> None:
    assert OPEN_LIMITS.max_seconds is not None
    assert OPEN_LIMITS.max_seconds > 24 * 3600
