"""The commands that train and score, from end to end, on tiny material and random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from embedder import checkpoints
from embedder.cli import app, late
from embedder.model import AudioEmbedder
from embedder.testing import write_wav
from eval.__main__ import NAMES, translated
from eval.training.trainer import CHECKPOINT, LOG
from tests.service_kit import free_port

RATE = 32_000


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-describing checkpoint of a random network."""
    torch.manual_seed(0)
    random = AudioEmbedder.build("mn01_as")
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    checkpoints.save(path, random.spec, random.backbone.state_dict(), random.labels)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise and tones, named as ESC-10 names its files: folds 1 and 4."""
    root = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for number in range(8):
        t = np.arange(RATE // 4) / RATE
        tone = 0.5 * np.sin(2 * np.pi * rng.uniform(300, 900) * t)
        fold = "14"[number % 2]
        write_wav(root / "tone" / f"{fold}-{number}-A.wav", tone, RATE)
        write_wav(root / "noise" / f"{fold}-{number}-A.wav", 0.2 * rng.normal(size=len(t)), RATE)
    return root


def test_every_command_explains_itself_as_its_group_does() -> None:
    for group, listed in late.GROUPS.items():
        groups_help = run(group, "--help")
        for name, command in listed.commands.items():
            assert f" {name} " in groups_help
            assert f" {group} {name} [OPTIONS]" in run(group, name, "--help")
            summary, *_ = (late.imported(command.function).__doc__ or "").partition("\n")
            assert command.summary == summary, name


def test_the_first_names_of_commands_still_work() -> None:
    assert translated(["hear-build", "x"]) == ["hear", "build", "x"]
    assert translated(["hear", "--tasks", "x"]) == ["hear", "run", "--tasks", "x"]
    assert translated(["bench"]) == ["bench", "engines"]
    assert translated(["bench", "server"]) == ["bench", "server"]
    assert translated([]) == []
    for group, name in NAMES.values():
        assert name in late.GROUPS[group].commands
    reached = {*NAMES.values()}
    assert all(
        (group, name) in reached for group in late.GROUPS for name in late.GROUPS[group].commands
    )


def test_a_corpus_distils_into_a_student(model: Path, sounds: Path, tmp_path: Path) -> None:
    run("train", "corpus", sounds, "--out", tmp_path / "corpus", "--workers", 1, "--synthetic", 28)
    options = ("--teacher", model, "--steps", 3, "--hold-out", "synthetic/sweep-1*")
    run("train", "distill", tmp_path / "corpus", "--out", tmp_path / "sprout", *options)
    student = AudioEmbedder.load(str(tmp_path / "sprout" / "sprout.safetensors"), device="cpu")
    assert student.name == "sprout"
    weights = load_file(tmp_path / "sprout" / "sprout.safetensors")
    assert weights["features.0.0.weight"].dtype == np.float16
    log = (tmp_path / "sprout" / LOG).read_text()
    assert "error_b15" in log


def test_stored_logits_distil_into_a_student(model: Path, sounds: Path, tmp_path: Path) -> None:
    run(
        "train",
        "logits",
        sounds,
        "--out",
        tmp_path / "l.npz",
        "--teacher",
        model,
        "--teacher",
        model,
    )
    options = ("--student", model, "--logits", tmp_path / "l.npz", "--steps", 2, "--batch", 2)
    run("train", "distill-tags", sounds, "--out", tmp_path / "run", "--device", "cpu", *options)
    assert AudioEmbedder.load(str(tmp_path / "run" / "run.safetensors"), device="cpu")


def test_finetuning_and_probing_tell_tones_from_noise(
    model: Path, sounds: Path, tmp_path: Path
) -> None:
    options = ("--model", model, "--test-fold", "4")
    tuning = ("--epochs", 2, "--batch", 4, "--seconds", 0.25, "--device", "cpu")
    run("train", "finetune", sounds, "--out", tmp_path / "tuned", *options, *tuning)
    tuned = AudioEmbedder.load(str(tmp_path / "tuned" / "tuned.safetensors"), device="cpu")
    assert tuned.labels == ("noise", "tone")
    assert (tmp_path / "tuned" / CHECKPOINT).is_file()
    output = run("train", "probe", sounds, "--out", tmp_path / "probe.safetensors", *options)
    assert "accuracy 1" in output
    probe = AudioEmbedder.load(str(tmp_path / "probe.safetensors"), device="cpu")
    wave = np.random.default_rng(9).normal(0, 0.2, RATE // 4).astype(np.float32)
    assert probe.labels[int(probe.tags(wave).argmax())] == "noise"


def test_a_mistake_is_one_line(sounds: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eval", "probe", str(sounds), "--model", "nobody"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "p.safetensors")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("embedder: error: no model 'nobody'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_train_one_model_together(model: Path, sounds: Path, tmp_path: Path) -> None:
    run("train", "corpus", sounds, "--out", tmp_path / "corpus", "--workers", 1, "--synthetic", 28)
    words = ("distill", tmp_path / "corpus", "--out", tmp_path / "both", "--teacher", model)
    command = [sys.executable, "-m", "embedder", "train", *map(str, words), "--steps", "3"]
    command += ["--hold-out", "synthetic/sweep-1*"]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    with ExitStack() as stack:
        processes = []
        for rank in (0, 1):
            environment = os.environ | group | {"RANK": str(rank)}
            processes.append(stack.enter_context(subprocess.Popen(command, env=environment)))
            stack.callback(processes[-1].kill)  # none outlives the test
        assert [process.wait(800) for process in processes] == [0, 0]
    assert (tmp_path / "both" / "both.safetensors").is_file()
