"""The decoder is faithful on good audio: formats, channels, scales, rates and blocks."""

from __future__ import annotations

import io
import json
import struct
import sys
import wave
from typing import Any

import av
import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from embedder.audio import libav
from embedder.audio.decode import (
    load_audio,
    resample,
    stream_audio,
)
from tests.encodings import ENCODINGS, RATE, encoded, fit_sine, pcm, sine, wav
from tests.interpreter import in_subprocess
from tests.shared import FORMATS, needs_shared

MANIFEST = json.loads((FORMATS / "manifest.json").read_text()) if FORMATS.is_dir() else {}


def similarity(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Highest normalised cross-correlation over all lags."""
    size = 2 * max(one.size, other.size)
    spectrum = np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size))
    return float(np.fft.irfft(spectrum, size).max() / np.linalg.norm(one) / np.linalg.norm(other))


@needs_shared
@pytest.mark.parametrize("name", MANIFEST)
def test_every_format_gives_the_same_bark(name: str) -> None:
    reference = load_audio(FORMATS / "pcm16_44k1_mono.wav", RATE)
    samples = load_audio(FORMATS / name, RATE)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert samples.size / RATE == pytest.approx(MANIFEST[name]["seconds"], abs=0.1)
    assert similarity(samples, reference) > 0.97
    assert similarity(-samples, reference) < 0.9


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_sine_survives_each_encoding(name: str) -> None:
    container, codec, rate = ENCODINGS[name]
    samples = load_audio(encoded(sine(1.0, rate), rate, container, codec), RATE)
    assert samples.size == pytest.approx(RATE, rel=0.1)
    amplitude, residual = fit_sine(samples[4000:28_000], RATE, 1000.0)
    assert amplitude == pytest.approx(0.5, rel=0.06)  # LAME turns down a little
    assert residual < 0.03


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([[0, 128, 255]], np.uint8), [-1.0, 0.0, 127 / 128]),
        (np.array([[-32_768, 0, 32_767]], np.int16), [-1.0, 0.0, 32_767 / 32_768]),
        (np.array([[-(2**31), 0, 2**30]], np.int32), [-1.0, 0.0, 0.5]),
    ],
)
def test_integers_are_scaled_by_powers_of_two(samples: NDArray[Any], expected: list[float]) -> None:
    assert load_audio(pcm(samples, RATE), RATE).tolist() == expected


def test_24_bit_full_scale_is_one() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 3, RATE, 0, "NONE", ""))
        out.writeframes(
            (-(2**23)).to_bytes(3, "little", signed=True) + (2**22).to_bytes(3, "little")
        )
    assert load_audio(file.getvalue(), RATE).tolist() == [-1.0, 0.5]


@pytest.mark.parametrize("channels", [[0.5], [0.5, -0.25], [0.5, -0.25, 0.125, 0.0, 0.0, 0.0]])
def test_mono_is_the_mean_of_the_channels(channels: list[float]) -> None:
    frames = np.tile((np.array(channels) * 32_768).astype(np.int16)[:, None], 1000)
    samples = load_audio(pcm(frames, RATE), RATE)
    np.testing.assert_allclose(samples, np.full(1000, np.mean(channels)), atol=1e-7)


def test_planar_channels_are_not_mixed_up_in_time() -> None:
    ramp = np.linspace(-0.5, 0.5, 5000)
    samples = load_audio(encoded(np.stack([ramp, 0 * ramp]), RATE, "flac", "flac"), RATE)
    np.testing.assert_allclose(samples, ramp / 2, atol=1e-4)


@pytest.mark.parametrize("codec", [("mp4", "aac"), ("ogg", "libopus"), ("wav", "pcm_s16le")])
def test_eight_channels_are_read(codec: tuple[str, str]) -> None:
    channels = sine(0.5, 48_000) * np.arange(1, 9)[:, None] / 8
    samples = load_audio(encoded(channels, 48_000, *codec), RATE)
    amplitude, _ = fit_sine(samples[4000:12_000], RATE, 1000.0)
    assert amplitude == pytest.approx(0.5 * 4.5 / 8, rel=0.3)  # encoders cut the low-frequency one


def test_channels_in_any_order_are_read() -> None:
    # PyAV alone frees this file's channel map twice, and the process dies.
    frames = np.stack([np.full(9000, 0.5), np.full(9000, -0.25)])
    for _ in range(20):
        samples = load_audio(caf(frames, labels=[2, 1]), RATE)
        np.testing.assert_array_equal(samples, np.full(9000, 0.125))


@pytest.mark.skipif(not libav._OLD_PYAV, reason="PyAV 19 copies layouts")
def test_layouts_that_pyav_would_free_twice_are_kept() -> None:
    for name, kept in (("stereo", 0), ("3 channels", 0), ("2 channels (FR+FL)", 1)):
        layout = av.AudioLayout(name)
        references = sys.getrefcount(layout)
        libav.keep_if_odd(layout)
        assert sys.getrefcount(layout) - references == kept, name


def caf(samples: NDArray[Any], labels: list[int]) -> bytes:
    """Core Audio's container with a list of what each channel is: 1 left, 2 right."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack(">q", len(body)) + body

    n = len(labels)
    form = struct.pack(">d4sIIIII", RATE, b"lpcm", 0, 2 * n, 1, n, 16)
    channels = struct.pack(">III", 0, 0, n) + b"".join(struct.pack(">I16x", i) for i in labels)
    data = bytes(4) + (samples.T * 32_768).astype(">i2").tobytes()
    return b"caff\0\1\0\0" + b"".join(
        chunk(*pair) for pair in ((b"desc", form), (b"chan", channels), (b"data", data))
    )


def test_floats_over_full_scale_are_kept() -> None:
    loud = encoded(sine(0.1, RATE, amplitude=3.0), RATE, "wav", "pcm_f32le")
    assert np.abs(load_audio(loud, RATE)).max() == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_resampling_equals_soxr_at_once(rate: int) -> None:
    signal = sine(3.3, rate)[0] + np.random.default_rng(0).normal(0, 0.1, round(3.3 * rate))
    signal = np.round(signal * 16_384).astype(np.int16)
    samples = load_audio(pcm(signal[None], rate), RATE)
    expected = soxr.resample(signal.astype(np.float32) / 32_768, rate, RATE, "HQ")
    assert samples.size == round(signal.size * RATE / rate)
    np.testing.assert_allclose(samples, expected, atol=1e-6)
    alone = resample(signal.astype(np.float32) / 32_768, rate, RATE)
    np.testing.assert_allclose(alone, expected, atol=1e-6)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_a_sine_keeps_frequency_and_amplitude(rate: int) -> None:
    samples = load_audio(wav(sine(2.0, rate, hz=3000.0), rate), RATE)
    amplitude, residual = fit_sine(samples[2000:-2000], RATE, 3000.0)
    assert amplitude == pytest.approx(0.5, rel=1e-3)
    assert residual < 1e-4


def test_the_tail_is_not_lost_in_the_resampler() -> None:
    click = np.zeros((1, 44_100))
    click[0, -20:] = 0.9
    samples = load_audio(wav(click, 44_100), RATE)
    assert samples.size == RATE
    assert np.abs(samples[-15:]).max() > 0.8


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("block_seconds", [0.01, 0.37, 10.0])
def test_blocks_joined_are_the_whole(rate: int, block_seconds: float) -> None:
    source = wav(np.random.default_rng(1).uniform(-0.9, 0.9, (2, round(4.7 * rate))), rate)
    blocks = list(stream_audio(source, RATE, block_seconds=block_seconds))
    size = round(block_seconds * RATE)
    assert {block.size for block in blocks[:-1]} <= {size}
    assert 0 < blocks[-1].size <= size
    np.testing.assert_array_equal(np.concatenate(blocks), load_audio(source, RATE))


def test_rate_and_channels_may_change_on_the_way() -> None:
    parts = [(1, 44_100), (2, 32_000), (1, 48_000)]
    tones = [encoded(np.tile(sine(1.0, rate), (c, 1)), rate, "mp3", "mp3") for c, rate in parts]
    samples = load_audio(b"".join(tones), RATE)
    assert samples.size / RATE == pytest.approx(3.0, abs=0.25)
    for second in (0.5, 1.5, 2.5):
        start = int(second * RATE)
        amplitude, residual = fit_sine(samples[start : start + 3000], RATE, 1000.0)
        assert amplitude == pytest.approx(0.5, rel=0.06)
        assert residual < 0.05


def test_old_tags_in_latin_1_do_not_matter() -> None:
    tag = b"INAM\x04\x00\x00\x00caf\xe9"
    info = b"LIST" + (4 + len(tag)).to_bytes(4, "little") + b"INFO" + tag
    plain = wav(sine(0.1, RATE), RATE)
    tagged = plain[:36] + info + plain[36:]
    np.testing.assert_array_equal(load_audio(tagged, RATE), load_audio(plain, RATE))


def test_a_large_cover_picture_does_not_hide_the_music() -> None:
    def synchsafe(number: int) -> bytes:
        return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))

    picture = b"\0image/png\0\3\0" + np.random.default_rng(2).bytes(2_000_000)
    frame = b"APIC" + synchsafe(len(picture)) + b"\0\0" + picture
    music = encoded(sine(1.0, RATE), RATE, "mp3", "mp3")
    samples = load_audio(b"ID3\4\0\0" + synchsafe(len(frame)) + frame + music, RATE)
    np.testing.assert_array_equal(samples, load_audio(music, RATE))


def test_importing_the_decoder_does_not_import_torch() -> None:
    code = "import sys, embedder.audio.decode; print(sorted({'torch', 'scipy'} & set(sys.modules)))"
    assert in_subprocess(code) == "[]\n"
