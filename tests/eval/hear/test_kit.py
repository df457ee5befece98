"""The official HEAR packages, run by our command on tasks of a few sounds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedder.cli import app
from eval.data.clips import write_wav
from eval.hear.environment import Kit
from eval.hear.models import candidate, validate
from tests.hear_kit import RATE, SMALLEST, class_folders, installed_kit, sound, tiny_checkpoint

# The kit is installed first, which takes minutes and a package index.
pytestmark = pytest.mark.slow
runner = CliRunner()


@pytest.fixture(scope="module")
def kit() -> Kit:
    return installed_kit()


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 1 s in which a tone sounds from 0.4 s to 0.8 s, as a CSV says."""
    folder = tmp_path_factory.mktemp("events")
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "onset", "offset", "split"])
        for index, split in enumerate(["train"] * 4 + ["valid"] * 2 + ["test"] * 2):
            samples = sound("noise", index, 1.0) * 0.01
            samples[6_400:12_800] += sound("tone", index, 0.4)
            write_wav(folder / f"{index}.wav", samples, RATE)
            writer.writerow([f"{index}.wav", "tone", 0.4, 0.8, split])
    return folder / "table.csv"


@pytest.mark.parametrize("family", SMALLEST)
def test_the_official_validator_accepts_every_family(kit: Kit, family: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(SMALLEST[family], tmp_path)
    assert "Looks good!" in validate(kit, candidate(str(checkpoint)))


@pytest.mark.timeout(900)  # a dozen processes that import torch: a minute on two free cores
def test_own_data_becomes_a_table_and_a_second_run_keeps_it(
    kit: Kit, events: Path, tmp_path: Path
) -> None:
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    checkpoint = tiny_checkpoint("mn01_as", tmp_path)
    sounds = class_folders(tmp_path / "sounds", 6)
    for source, name, more in (
        (sounds, "sounds", ["--folds", "3", "--seconds", "0.5"]),
        (events, "events", ["--seconds", "1"]),
    ):
        built = ["hear", "build", str(source), "--name", name, "--tasks-dir", str(tasks), *more]
        result = runner.invoke(app, built)
        assert result.exit_code == 0, result.output
    command = [
        *("hear", "run", "--tasks", "sounds,events", "--model", str(checkpoint), "--out", str(out)),
        *("--tasks-dir", str(tasks), "--env", str(kit.folder)),
        *("--grid", "faster", "--grid-points", "1", "--jobs", "2"),
    ]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert (tasks / "sounds" / "32000" / "fold00").is_dir()  # brought to the model's rate
    report = json.loads((out / "hear.json").read_text("utf-8"))
    scores = report["rows"][0]["scores"]
    assert 0 <= scores["sounds"]["value"] <= 1  # random weights: it runs, and means nothing
    assert scores["sounds"]["std"] is not None
    assert 0 <= scores["events"]["value"] <= 1
    assert not list(out.rglob("*.ckpt"))

    made = {path: path.stat().st_mtime_ns for path in out.rglob("test.predicted-scores.json")}
    again = runner.invoke(app, command)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert json.loads((out / "hear.json").read_text("utf-8"))["rows"][0]["scores"] == scores
