"""Decoding ahead: order, equality, and workers that die."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from embedder.audio import ahead
from embedder.audio.ahead import decode_ahead
from embedder.audio.decode import load_audio
from embedder.bulk.inputs import find_audio
from embedder.errors import BadAudio
from embedder.testing import write_wav
from tests.cli_kit import RATE, noise, write_noises


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_blocks_come_in_order_and_join_to_the_file(tmp_path: Path, workers: int) -> None:
    files = [str(file) for file in write_noises(tmp_path, [0.1, 21.0, 0.2, 10.0, 0.3])]
    files.insert(2, str(tmp_path / "missing.wav"))
    seen = []
    for path, blocks in decode_ahead(files, RATE, workers):
        seen.append(path)
        if "missing" in path:
            with pytest.raises(BadAudio, match="no such file"):
                next(blocks)
        else:
            assert np.array_equal(np.concatenate(list(blocks)), load_audio(path, RATE))
        assert list(blocks) == []
    assert seen == files


def test_a_file_left_early_does_not_disturb_the_next(tmp_path: Path) -> None:
    files = [str(file) for file in write_noises(tmp_path, [45.0, 0.1, 0.2])]
    sizes = [next(blocks).size for _, blocks in decode_ahead(files, RATE, 1)]
    assert sizes == [10 * RATE, RATE // 10, RATE // 5]


def test_a_worker_that_dies_fails_its_file_alone(tmp_path: Path) -> None:
    long = write_wav(tmp_path / "long.wav", noise(400), 16_000)  # beyond what a lane holds ready
    short = write_wav(tmp_path / "short.wav", noise(0.1))
    paths = []
    for path, blocks in decode_ahead([str(long), str(short)], RATE, 1):
        paths.append(path)
        if path == str(short):
            assert sum(block.size for block in blocks) == RATE // 10
            continue
        next(blocks)
        [worker] = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(BadAudio, match="died with exit code -9"):
            list(blocks)
    assert paths == [str(long), str(short)]


def test_a_worker_that_dies_amid_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = write_noises(tmp_path, [0.1, 0.2])
    receive = ahead._Lane._receive

    def broken(lane: ahead._Lane) -> bytes:
        monkeypatch.setattr(ahead._Lane, "_receive", receive)
        lane._worker.kill()
        raise OSError("got end of file during message")

    monkeypatch.setattr(ahead._Lane, "_receive", broken)
    decoded = decode_ahead([str(first), str(second)], RATE, 1)
    with pytest.raises(BadAudio, match="died with exit code -9"):
        list(next(decoded)[1])
    assert sum(block.size for block in next(decoded)[1]) == RATE // 5
    decoded.close()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    files = [str(file) for file in write_noises(tmp_path, [100.0, 0.1, 0.1])]
    n_threads = threading.active_count()
    decoded = decode_ahead(files, RATE, 2)
    next(decoded)
    assert threading.active_count() == n_threads + 2
    decoded.close()
    assert threading.active_count() == n_threads
    assert not multiprocessing.active_children()


def test_workers_import_no_torch() -> None:
    code = (
        "import sys, embedder.audio.ahead; sys.exit(bool({'torch', 'pyarrow'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_folders_patterns_and_lists_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.wav", "b/1.FLAC", "b/c/3.mp3", "b/.hidden.wav", "b/notes.txt", "a[1].bin"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    below = ["b/1.FLAC", "b/2.wav", "b/c/3.mp3"]
    assert find_audio(["b"]) == below
    assert find_audio(["b/2.wav", "b"]) == ["b/2.wav", "b/1.FLAC", "b/c/3.mp3"]
    assert find_audio(["b/*.txt"]) == ["b/notes.txt"]
    assert find_audio(["b/**/*.mp3"]) == ["b/c/3.mp3"]
    assert find_audio(["a[1].bin"]) == ["a[1].bin"]
    assert find_audio(["*"]) == ["a[1].bin", *below]
    assert find_audio(["-", "x"], ["b/2.wav", "b/c"]) == ["b/2.wav", "b/c/3.mp3", "x"]
    assert find_audio(["none*.wav"]) == ["none*.wav"]
    assert find_audio(["b/notes.txt/"], []) == ["b/notes.txt/"]
