"""A job that ends early goes on, without a lost or duplicated row; no output is overwritten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from embedder.bulk import job as bulk
from embedder.bulk import parts
from embedder.bulk.job import BulkOptions, embed_files
from embedder.bulk.parts import Existing, Parts
from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from tests.cli_kit import MODEL, noise, rows, tiny_model, write_noises, write_weights

OPTIONS = BulkOptions(workers=0)


@pytest.fixture(scope="module")
def model() -> Iterator[AudioEmbedder]:
    with tiny_model() as built:
        yield built


def embed(
    model: AudioEmbedder, files: list[Path], output: Path, existing: Existing = "refuse"
) -> dict[str, str | None]:
    heard: dict[str, str | None] = {}
    names = [str(file) for file in files]
    embed_files(model, names, output, OPTIONS, heard.__setitem__, existing)
    return heard


def paths(output: Path) -> list[str]:
    return [row["path"] for row in rows(output)]


def interrupted(model: AudioEmbedder, files: list[Path], output: Path, n_files: int) -> None:
    """Ctrl-C once so many files are in parts of one file each."""
    save, count = bulk._Job._save, iter(range(1000))

    def saving(job: bulk._Job) -> None:
        save(job)
        if next(count) == n_files - 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "PART_FILES", 1)
        patch.setattr(bulk._Job, "_save", saving)
        with pytest.raises(KeyboardInterrupt):
            embed(model, files, output)


def test_an_interrupted_job_goes_on(model: AudioEmbedder, tmp_path: Path) -> None:
    files, output = write_noises(tmp_path, [0.1] * 5), tmp_path / "out.parquet"
    interrupted(model, files, output, 3)
    assert not output.exists()
    with pytest.raises(BadRequest, match=r"--resume continues it, --overwrite begins anew"):
        embed(model, files, output)
    files[0].unlink()  # done already: not decoded again
    files.append(tmp_path / "new.wav")
    heard = embed(model, files, output, "resume")
    assert sorted(heard) == paths(output) == [str(file) for file in files]
    assert [name for name, error in heard.items() if error] == [str(files[-1])]


def test_other_options_do_not_continue_a_job(model: AudioEmbedder, tmp_path: Path) -> None:
    files, output = write_noises(tmp_path, [0.1] * 3), tmp_path / "out.jsonl"
    interrupted(model, files, output, 1)
    other = AudioEmbedder.build(MODEL, taps=["mel"])
    with pytest.raises(BadRequest, match=r"begun with taps .*'mel'.* or --overwrite"):
        embed(other, files, output, "resume")
    embed(other, files, output, "overwrite")
    assert len(output.read_text().splitlines()) == 3
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".wav", ".wav", ".wav"]


def test_another_engine_does_not_continue_a_job(model: AudioEmbedder, tmp_path: Path) -> None:
    weights = write_weights(model, tmp_path / "weights.pt")
    files, output = write_noises(tmp_path, [0.1] * 3), tmp_path / "out.parquet"
    begun, other = (
        AudioEmbedder.load(MODEL, weights, device="cpu", runtime=runtime)
        for runtime in ("eager", "torch")
    )
    interrupted(begun, files, output, 1)
    message = r"begun with engine 'eager cpu f32', not 'torch cpu f32'; .*--runtime and --device"
    with pytest.raises(BadRequest, match=message):
        embed(other, files, output, "resume")
    embed(begun, files, output, "resume")
    assert paths(output) == [str(file) for file in files]


def test_a_finished_output_is_extended_or_replaced_only_when_asked(
    model: AudioEmbedder, tmp_path: Path
) -> None:
    files, output = write_noises(tmp_path, [0.1, 0.2, 0.3]), tmp_path / "out.parquet"
    embed(model, files[:2], output)
    before = output.read_bytes()
    with pytest.raises(BadRequest, match="--resume adds what it lacks, --overwrite replaces it"):
        embed(model, files, output)
    with pytest.raises(BadRequest, match="begun with taps"):
        embed(AudioEmbedder.build(MODEL, taps=["mel"]), files, output, "resume")
    assert output.read_bytes() == before
    assert not parts.parts_folder(output).exists()
    files[0].unlink()
    assert embed(model, files, output, "resume") == dict.fromkeys(map(str, files))
    assert paths(output) == [str(file) for file in files]
    embed(model, files[2:], output, "overwrite")
    assert paths(output) == [str(files[2])]


def test_formats_that_cannot_be_read_back_are_not_extended(
    model: AudioEmbedder, tmp_path: Path
) -> None:
    files, output = write_noises(tmp_path, [0.1]), tmp_path / "out.csv"
    embed(model, files, output)
    with pytest.raises(BadRequest, match="use --overwrite"):
        embed(model, files, output, "resume")


@pytest.mark.parametrize("begin", ["refuse", "resume"])
def test_an_end_between_output_and_clean_up_duplicates_nothing(
    model: AudioEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Existing
) -> None:
    files, output = write_noises(tmp_path, [0.1, 0.2, 0.3]), tmp_path / "out.parquet"
    if begin == "resume":
        embed(model, files[:1], output)
    move = parts._move

    def moving(source: Path, target: Path) -> None:
        move(source, target)
        if target == output:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_move", moving)
        with pytest.raises(KeyboardInterrupt):
            embed(model, files, output, begin)
    assert parts.parts_folder(output).exists()
    embed(model, files, output, "resume")
    assert paths(output) == [str(file) for file in files]
    assert not parts.parts_folder(output).exists()


def test_two_processes_do_not_write_one_output(model: AudioEmbedder, tmp_path: Path) -> None:
    files, output = write_noises(tmp_path, [0.1]), tmp_path / "out.parquet"
    first = Parts(output, bulk.row_format(model, OPTIONS))
    with pytest.raises(BadRequest, match="another process"):
        embed(model, files, output, "overwrite")
    first.close()
    embed(model, files, output, "overwrite")


def test_names_that_are_not_utf8_are_done_once(model: AudioEmbedder, tmp_path: Path) -> None:
    [file] = write_noises(tmp_path, [0.1])
    odd = file.with_name(os.fsdecode(b"caf\xe9.wav"))
    file.rename(odd)
    embed(model, [odd], tmp_path / "out.parquet")
    embed(model, [odd], tmp_path / "out.parquet", "resume")
    assert paths(tmp_path / "out.parquet") == [str(tmp_path / r"caf\udce9.wav")]


def start_job(arguments: list[str]) -> psutil.Popen:
    """`embedder` in a process group of its own, slowly, in parts of four files."""
    arguments = [*arguments, "-m", MODEL, "--workers", "2", "--device", "cpu"]
    code = (
        "import signal, sys, time; from embedder import cli; "
        "from embedder.bulk import job as bulk; "
        # A shell has its background jobs ignore Ctrl-C, and these tests may run in one.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "bulk.PART_FILES = 4; save = bulk._Job._save; "
        "bulk._Job._save = lambda job: (save(job), time.sleep(0.1)); "
        f"sys.exit(cli.main({arguments!r}))"
    )
    return psutil.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_sigkill_loses_and_duplicates_nothing(model: AudioEmbedder, tmp_path: Path) -> None:
    weights = write_weights(model, tmp_path / "weights.pt")
    files, output = write_noises(tmp_path, [0.1] * 60), tmp_path / "out.parquet"
    folder = parts.parts_folder(output)
    job = start_job(["embed", str(tmp_path), "-o", str(output), "--weights", str(weights)])
    workers: list[psutil.Process] = []
    while len(list(folder.glob("*.parquet"))) < 3:
        assert job.poll() is None
        workers = job.children(recursive=True) or workers
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert workers
    assert not psutil.wait_procs(workers, timeout=20)[1]  # none outlives its parent
    assert not output.exists()
    assert len(list(folder.glob("*.parquet"))) < 15
    for file in files[:12]:
        file.unlink()  # done: their rows need no file
    heard = embed(AudioEmbedder.load(MODEL, weights, device="cpu"), files, output, "resume")
    assert heard == dict.fromkeys(map(str, files))
    assert paths(output) == [str(file) for file in files]
    for index in range(0, 60, 7):
        ours = rows(output)[index]["embedding"]
        alone = model.scene(noise(0.1, index).astype(np.float32) / 32_768)[0]
        assert ours == pytest.approx(alone.tolist(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("n_parts", [0, 2])
def test_ctrl_c_of_a_terminal_is_quiet(model: AudioEmbedder, tmp_path: Path, n_parts: int) -> None:
    weights = write_weights(model, tmp_path / "weights.pt")
    sounds, output = tmp_path / "sounds", tmp_path / "out.parquet"
    files = write_noises(sounds, [0.1] * 40)
    job = start_job(["embed", str(sounds), "-o", str(output), "--weights", str(weights)])
    folder = parts.parts_folder(output)
    while not job.children() or len(list(folder.glob("*.parquet"))) < n_parts:
        assert job.poll() is None
        time.sleep(0.01)
    workers = job.children(recursive=True)
    os.killpg(job.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the workers too
    _, err = job.communicate()
    assert job.returncode == 130
    assert err == (f"finished files are kept; --resume continues {output}\nembedder: interrupted\n")
    assert not psutil.wait_procs(workers, timeout=20)[1]
    assert n_parts <= len(list(folder.glob("*.parquet"))) < len(files) // 4
