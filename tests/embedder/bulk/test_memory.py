"""Memory does not grow with the length of a recording, nor with the number of files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedder.testing import write_wav
from tests.cli_kit import MODEL, noise, tiny_model, write_weights
from tests.shared import ROOT

ALLOWED = 1024  # MiB
ALLOWED_GROWTH = 64
MINUTE = noise(60)[::4]  # at 8 kHz


def peak(arguments: list[str]) -> float:
    """MiB of memory that `embedder` takes at most, without its workers."""
    code = (
        "import sys; from embedder.cli import main; from eval.bench.memory import peak_megabytes; "
        "code = main(sys.argv[1:]); sys.stdout.write(str(peak_megabytes())); sys.exit(code)"
    )
    root = str(ROOT)
    # One heap for all threads: the holes of several differ by 100 MiB from run to run.
    heaps = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    environment = {**os.environ, **heaps, "PYTHONPATH": root}
    command = [sys.executable, "-c", code, *arguments]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return float(answer.stdout)


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    with tiny_model() as model:
        weights = write_weights(model, tmp_path / "tiny.pt")
    return ["-m", MODEL, "--weights", str(weights), "--device", "cpu", "--workers", "1"]


@pytest.mark.slow
def test_timestamps_of_long_recordings(options: list[str], tmp_path: Path) -> None:
    taps = ["--taps", "mel,b5,b11,b13,b15,clf1,logits"]  # 120 MB of rows in 30 minutes
    peaks = {}
    for minutes in (15, 45):
        audio = write_wav(tmp_path / f"{minutes}.wav", np.tile(MINUTE, minutes), 8_000)
        output = tmp_path / f"{minutes}.parquet"
        peaks[minutes] = peak(
            ["embed", str(audio), "--timestamps", *taps, "-o", str(output), *options]
        )
        assert pq.read_metadata(output).num_rows == minutes * 60 * 20 + 1
    assert peaks[45] < ALLOWED
    assert peaks[45] - peaks[15] < ALLOWED_GROWTH


@pytest.mark.slow
def test_scenes_of_long_recordings(options: list[str], tmp_path: Path) -> None:
    peaks = {}
    for minutes in (5, 30):  # 190 MB more at the model's rate
        audio = write_wav(tmp_path / f"{minutes}.wav", np.tile(MINUTE, minutes), 8_000)
        peaks[minutes] = peak(["embed", str(audio), "-o", f"{audio}.parquet", *options])
    assert peaks[30] < ALLOWED
    assert peaks[30] - peaks[5] < ALLOWED_GROWTH


@pytest.mark.slow
def test_scenes_of_many_files(options: list[str], tmp_path: Path) -> None:
    lengths = [
        write_wav(tmp_path / f"{index}.wav", MINUTE[: 80_000 - index], 8_000)
        for index in range(300)
    ]
    peaks = {}
    # The heap has to meet each length before it grows no more. 2.3 GB more at the model's rate.
    for n_files in (900, 2700):
        folder = tmp_path / str(n_files)
        folder.mkdir()
        for index in range(n_files):
            (folder / f"{index}.wav").hardlink_to(lengths[index % len(lengths)])
        peaks[n_files] = peak(["embed", str(folder), "-o", f"{folder}.parquet", *options])
    assert peaks[2700] < ALLOWED
    assert peaks[2700] - peaks[900] < ALLOWED_GROWTH
