"""The benchmarks time what they say: the plain procedure is the model's, and every way is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from embedder.cli import app
from eval.bench.engines import Case, measure, noise
from eval.bench.material import random_model
from eval.bench.plain import PlainEmbedder
from eval.bench.report import machine, markdown, report


@pytest.mark.parametrize("name", ["mn01_as", "dymn04_as", "fmn04_strong"])
def test_the_plain_procedure_is_the_models(name: str) -> None:
    model = random_model(name)
    plain = PlainEmbedder(model)
    wave = noise(model, 2)[:, : model.sample_rate]
    for ours, theirs in (
        (model.scene(wave), plain.scene(wave)),
        (model.timestamps(wave).vectors, plain.timestamps(wave)),
    ):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_every_way_is_timed_beside_the_plain_one() -> None:
    rows = measure(Case("mn01_as", "scene", 1, 1), ["eager", "torch"], rounds=1)
    assert [row["way"] for row in rows] == ["plain", "eager", "torch"]
    assert rows[0]["times faster"] == 1
    assert all(row["ms a clip"] > 0 and row["error"] < 1e-5 for row in rows)
    assert all(50 < row["peak MiB"] < 2000 for row in rows)


def test_the_command_writes_a_table_and_json(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    line = (
        "bench engines --model mn01_as --job scene --batch 1 --threads 1 --engine eager --rounds 1"
    )
    result = CliRunner().invoke(app, [*line.split(), "--out", str(out)])
    assert result.exit_code == 0
    assert "| mn01_as | scene | 1 | 1 | eager |" in result.stdout
    written = json.loads(out.read_text("utf-8"))
    assert written["machine"]["torch"] == torch.__version__
    assert len(written["rows"]) == 2


def test_a_table_is_markdown() -> None:
    rows = [{"a": 0.00012, "b": "x", "c": 123.456}, {"a": 1.5, "b": "y", "c": 7}]
    assert markdown(rows).splitlines()[2:] == ["| 1e-04 | x | 123 |", "| 1.5 | y | 7 |"]
    assert {"date", "processor", "cores", "torch"} <= set(machine())


def test_a_report_has_its_title_in_both_forms(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    text = report([{"a": 1}], out, "one row")
    assert text.startswith("# one row\n\ndate ")
    assert text.endswith("| a |\n| --- |\n| 1 |")
    assert list(json.loads(out.read_text("utf-8"))) == ["title", "machine", "rows"]
