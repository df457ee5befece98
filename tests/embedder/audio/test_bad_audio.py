"""Broken and hostile audio gives typed errors, or what is there, and reaches nothing else."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedder.audio import libav
from embedder.audio.decode import (
    HTTP_LIMITS,
    check_samples,
    load_audio,
)
from embedder.errors import AudioTooLarge, BadAudio, EmbedderError, UnsupportedAudio
from tests.encodings import ENCODINGS, RATE, encoded, sine, wav
from tests.interpreter import in_subprocess
from tests.shared import BAD, needs_shared

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
    data[hits] = rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))], size=hits.size)
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
