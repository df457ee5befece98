"""The decoder: faithful on good audio, typed errors on bad, and never more than it may cost."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from embedder.audio import decode as audio
from embedder.audio import libav, mono
from embedder.audio.decode import (
    HTTP_LIMITS,
    OPEN_LIMITS,
    DecodeLimits,
    check_samples,
    load_audio,
    resample,
    stream_audio,
)
from embedder.errors import AudioTooLarge, BadAudio, BadRequest, EmbedderError, UnsupportedAudio
from tests.shared import ROOT, SHARED, needs_shared

RATE = 32_000
FORMATS = SHARED / "audio" / "formats"
BAD = SHARED / "audio" / "bad"
MANIFEST = json.loads((FORMATS / "manifest.json").read_text()) if FORMATS.is_dir() else {}

# What each hostile file gives under HTTP_LIMITS at 32 kHz: an error, or so many samples.
BAD_OUTCOMES: dict[str, type[BadAudio] | int] = {
    "65535_channels.wav": BadAudio,
    "bit_flipped.flac": BadAudio,  # 2400 flips: no frame's checksum holds
    "bit_flipped.ogg": UnsupportedAudio,
    "concat_script.wav": UnsupportedAudio,
    "empty.wav": BadAudio,
    "header_claims_4GB.wav": 710,  # what is there
    "huge_amplitude.wav": BadAudio,
    "inf_samples.wav": BadAudio,
    "nan_samples.wav": BadAudio,
    "no_samples.wav": BadAudio,
    "one_hour_of_silence.opus": AudioTooLarge,
    "one_sample.wav": 1,
    "picture.png": UnsupportedAudio,
    "pickle.wav": UnsupportedAudio,
    "playlist_file.m3u8": UnsupportedAudio,
    "playlist_http.m3u8": UnsupportedAudio,
    "random_bytes.mp3": UnsupportedAudio,
    "sample_rate_1Hz.wav": BadAudio,
    "sample_rate_4GHz.wav": UnsupportedAudio,
    "sample_rate_zero.wav": UnsupportedAudio,
    "sdp.wav": UnsupportedAudio,
    "ten_hours_of_silence.flac": AudioTooLarge,
    "ten_samples.wav": 10,
    "text_named.wav": UnsupportedAudio,
    "truncated_half.wav": 47_992,  # the half that is there
    "truncated_header.wav": UnsupportedAudio,
    "video_without_sound.mp4": UnsupportedAudio,
    "zero_channels.wav": BadAudio,
}


def sine(seconds: float, rate: int, hz: float = 1000.0, amplitude: float = 0.5) -> NDArray[Any]:
    """A mono sine, shape [1, S]."""
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)[None]


def pcm(samples: NDArray[Any], rate: int) -> bytes:
    """Integer samples, shape [C, S], as WAV; written by the standard library, not by libav."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(samples.shape[0])
        out.setsampwidth(samples.itemsize)
        out.setframerate(rate)
        out.writeframes(np.ascontiguousarray(samples.T).tobytes())
    return file.getvalue()


def wav(samples: NDArray[Any], rate: int) -> bytes:
    return pcm(np.round(samples * 32_767).astype(np.int16), rate)


def encoded(samples: NDArray[Any], rate: int, container: str, codec: str) -> bytes:
    """Float samples, shape [C, S], through libav's encoder."""
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 8: "7.1"}[samples.shape[0]]
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.layout = layout
        stream.bit_rate = 96_000  # of the lossy ones
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        interleaved = samples.T.astype(np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
        frame.sample_rate = rate
        for piece in (*resampler.resample(frame), None):
            out.mux(stream.encode(piece))
    return file.getvalue()


ENCODINGS = {  # container, codec, rate
    "wav": ("wav", "pcm_s16le", 16_000),
    "float wav": ("wav", "pcm_f32le", 16_000),
    "aiff": ("aiff", "pcm_s16be", 16_000),
    "flac": ("flac", "flac", 16_000),
    "mp3": ("mp3", "mp3", 16_000),
    "opus": ("ogg", "libopus", 48_000),
    "m4a": ("mp4", "aac", 16_000),
    "alac": ("mp4", "alac", 16_000),
    "webm": ("webm", "libopus", 48_000),
    "wma": ("asf", "wmav2", 44_100),
}


def in_subprocess(code: str, *args: str) -> str:
    """Standard output of a fresh interpreter, which must stay silent on stderr."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- Good audio ---------------------------------------------------------------------------------


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


def fit_sine(samples: NDArray[Any], rate: int, hz: float) -> tuple[float, float]:
    """Amplitude of the best sine of that frequency, and RMS of what it leaves."""
    phase = 2 * np.pi * hz * np.arange(samples.size) / rate
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    weights, *_ = np.linalg.lstsq(basis, samples.astype(np.float64), rcond=None)
    return float(np.hypot(*weights)), float(np.std(samples - basis @ weights))


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


# --- Sources ------------------------------------------------------------------------------------


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


# --- Bad audio ----------------------------------------------------------------------------------


@needs_shared
def test_every_bad_file_has_an_expected_outcome() -> None:
    assert set(BAD_OUTCOMES) == {path.name for path in BAD.iterdir()}


@needs_shared
@pytest.mark.parametrize("as_path", [True, False])
@pytest.mark.parametrize("name", BAD_OUTCOMES)
def test_bad_files_give_a_typed_error_or_what_is_there(name: str, as_path: bool) -> None:
    expected = BAD_OUTCOMES[name]
    source = BAD / name if as_path else (BAD / name).read_bytes()
    started = time.process_time()
    outcome, message = outcome_of(source)
    assert time.process_time() - started < 3  # a half on an idle machine
    assert outcome == expected
    assert "<none>" not in message  # libav's name for bytes


GREEDY = """
import struct
from embedder.audio.decode import load_audio
from embedder.errors import BadAudio
from eval.bench.memory import peak_megabytes

form = struct.pack("<IHHIIHH", 16, 1, 1, 32_000, 64_000, 2, 16)
title = b"LIST" + struct.pack("<I", 2**31 - 1) + b"INFOINAM" + struct.pack("<I", 2**31 - 16)
try:
    load_audio(b"RIFF\\xff\\xff\\xff\\xffWAVEfmt " + form + title + bytes(100), 32_000)
except BadAudio:
    print(peak_megabytes())
"""


def test_a_header_cannot_ask_for_gigabytes() -> None:
    assert float(in_subprocess(GREEDY)) < 300


def test_the_size_of_a_frame_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert int(libav.DECODER_OPTIONS["max_samples"]) <= 1 << 20
    source = wav(sine(0.5, RATE), RATE)
    load_audio(source, RATE)
    monkeypatch.setitem(libav.DECODER_OPTIONS, "max_samples", "100")
    with pytest.raises(BadAudio, match="no samples"):
        load_audio(source, RATE)


WATCHED_DECODING = """
import json, logging, os, sys, threading
from pathlib import Path
import embedder.audio.decode as audio
from embedder.errors import BadAudio
from eval.bench.memory import peak_megabytes

logging.disable()
opened, seen, done = [], set(), threading.Event()

def hook(event, args):
    if event == "open" or event.startswith("socket."):
        opened.append(f"{event} {args[0]}")

def watch():  # descriptors that C code opens show only here
    while not done.is_set():
        for number in os.listdir("/proc/self/fd"):
            try:
                seen.add(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                pass

def decode_all():
    for source in sources:
        try:
            audio.load_audio(source, 32_000, audio.HTTP_LIMITS)
        except BadAudio:
            pass

sources = [Path(path).read_bytes() for path in sys.argv[1:]]
decode_all()  # Python imports some modules late
before = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if int(n) < 3}
watcher = threading.Thread(target=watch)
watcher.start()
sys.addaudithook(hook)
decode_all()
done.set()
watcher.join()
seen = {name for name in seen if not name.startswith("/proc/")} - before
report = {"opened": list(opened), "seen": sorted(seen), "megabytes": peak_megabytes()}
print(json.dumps(report))
"""


@needs_shared
def test_bad_files_open_nothing_and_fit_in_memory() -> None:
    report = json.loads(in_subprocess(WATCHED_DECODING, *map(str, sorted(BAD.iterdir()))))
    assert report["opened"] == []
    assert report["seen"] == []
    assert report["megabytes"] < 300


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield server


@pytest.mark.parametrize("also", ["", ",hls,concat,sdp"])
def test_scripts_reach_no_other_file_and_no_socket(
    also: str, tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With `also` the first gate, the list of formats, stands open; the others must hold alone.
    allowed = libav.OPTIONS["format_whitelist"] + also
    monkeypatch.setattr(libav, "OPTIONS", {**libav.OPTIONS, "format_whitelist": allowed})
    monkeypatch.chdir(tmp_path)
    Path("secret.wav").write_bytes(wav(sine(0.5, RATE), RATE))
    port = listener.getsockname()[1]
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    scripts = [
        playlist.format("secret.wav"),
        playlist.format(f"http://127.0.0.1:{port}/a.wav"),
        "ffconcat version 1.0\nfile 'secret.wav'\n",
        f"ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/a.wav'\n",
    ]
    for script in scripts:
        with pytest.raises(BadAudio):
            load_audio(script.encode(), RATE, HTTP_LIMITS)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_codecs_not_in_our_table_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedAudio, match="g722"):
        load_audio(encoded(sine(0.5, 16_000), 16_000, "wav", "g722"), RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e4])
def test_samples_no_model_can_take_are_refused(value: float) -> None:
    samples = sine(0.2, RATE)
    samples[0, 1234] = value
    with pytest.raises(BadAudio, match="samples"):
        load_audio(encoded(samples, RATE, "wav", "pcm_f64le"), 16_000)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0, np.float32), "at least one"),
        (np.zeros(3, np.int16), "int16"),
        (np.array([0.0, np.nan]), "nan"),
        (np.array([[0.0], [-np.inf]], np.float32), "inf"),
        (np.array([0.0, -32_768.0]), "32768"),
    ],
)
def test_check_samples_says_what_is_wrong(samples: NDArray[Any], reason: str) -> None:
    with pytest.raises(BadAudio, match=reason):
        check_samples(samples)
    check_samples(np.array([[-1.5, 0.0]], np.float32))


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus"])
def test_a_file_cut_short_gives_its_first_part(name: str) -> None:
    container, codec, rate = ENCODINGS[name]
    whole = encoded(sine(4.0, rate), rate, container, codec)
    full = load_audio(whole, RATE)
    part = load_audio(whole[: len(whole) * 6 // 10], RATE)
    assert 0.4 < part.size / full.size < 0.7
    same = part.size - RATE // 10  # the very end may ring
    np.testing.assert_allclose(part[:same], full[:same], atol=1e-3)


def test_a_damaged_flac_frame_is_dropped_not_played() -> None:
    whole = bytearray(encoded(sine(4.0, RATE), RATE, "flac", "flac"))
    full = load_audio(whole, RATE)
    middle = len(whole) // 2
    whole[middle : middle + 200] = bytes(200)
    part = load_audio(whole, RATE)
    assert 0 < full.size - part.size < RATE
    assert np.abs(part).max() < 0.51


def test_skipped_damage_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    whole = bytearray(encoded(sine(4.0, RATE), RATE, "mp4", "alac"))
    with caplog.at_level(logging.WARNING):
        full = load_audio(whole, RATE)
        assert caplog.text == ""
        whole[20_000:40_000] = b"\xff" * 20_000
        part = load_audio(whole, RATE)
    assert 0 < part.size < full.size
    assert "damaged audio" in caplog.text


@pytest.mark.parametrize("name", ENCODINGS)
def test_mutated_files_raise_nothing_but_our_errors(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    container, codec, rate = ENCODINGS[name]
    original = encoded(sine(0.25, rate), rate, container, codec)
    outcomes = [outcome_of(mutated(original, seed))[0] for seed in range(60)]
    assert any(isinstance(outcome, type) for outcome in outcomes), "no mutation did any harm"
    assert capfd.readouterr().err == ""


def mutated(original: bytes, seed: int) -> bytes:
    """Some bytes overwritten, most of them near the header; every third file also cut."""
    rng = np.random.default_rng(seed)
    data = np.frombuffer(original, np.uint8).copy()
    reach = data.size if seed % 2 else min(data.size, 600)
    hits = rng.integers(0, reach, size=rng.integers(1, 30))
    data[hits] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)], size=hits.size)
    return data[: rng.integers(1, data.size) if seed % 3 == 0 else None].tobytes()


def outcome_of(source: bytes | Path) -> tuple[type[EmbedderError] | int, str]:
    """The error and its message, or how many samples came."""
    try:
        samples = load_audio(source, RATE, HTTP_LIMITS)
    except EmbedderError as error:
        return type(error), str(error)
    check_samples(samples)
    assert samples.dtype == np.float32
    return samples.size, ""


# --- Limits -------------------------------------------------------------------------------------


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


def test_importing_the_decoder_does_not_import_torch() -> None:
    code = "import sys, embedder.audio.decode; print(sorted({'torch', 'scipy'} & set(sys.modules)))"
    assert in_subprocess(code) == "[]\n"
