"""Facts about HEAR, tables and figures of scores, and what decides that a job is done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embedder.cli import app
from embedder.errors import BadRequest, EmbedderError
from eval.hear import cli, facts, report
from eval.hear.jobs import PREDICTED, SCORES, Effort, HearJob
from eval.hear.models import Candidate, Described, candidate, parse_options
from eval.hear.plan import write_task
from eval.hear.report import ModelScores, Score, ScoreReport
from eval.hear.sources import class_folders, plan
from tests import hear_kit

FOLDED = {"aggregated_scores": {"test_top1_acc_mean": 0.9, "test_top1_acc_std": 0.02}}


@pytest.fixture
def job(tmp_path: Path) -> HearJob:
    clips = class_folders(hear_kit.class_folders(tmp_path / "sounds", 3), folds=3)
    task = write_task(plan("esc50-v2.0.0-full", clips), tmp_path / "tasks", 16_000)
    described = Described(Candidate("tiny", "hear_api"), 16_000, 8, 8, 120_000, "abc")
    return HearJob(described, task, tmp_path / "out", Effort())


def finish(job: HearJob, scores: dict[str, Any]) -> Path:
    results = job.folder / "embeddings" / "hear_api" / job.task.name
    results.mkdir(parents=True)
    (results / SCORES).write_text(json.dumps(scores))
    (results / PREDICTED).write_text(json.dumps({"time": 2.0}))
    (results / "profile.embeddings.json").write_text(json.dumps({"time_elapsed": 1.0}))
    job.record.write_text(json.dumps(job.request()))
    return results


def row(label: str, parameters: int = 1_000_000, **scores: float) -> ModelScores:
    return ModelScores(label, {task: Score(value) for task, value in scores.items()}, parameters)


def test_all_tasks_are_known_with_their_best_scores() -> None:
    assert len(facts.TASKS) == 19
    assert len({folder for task in facts.TASKS.values() for folder in task.folders}) == 20
    for name, task in facts.TASKS.items():
        assert 0 < facts.best(name) <= 1
        assert all(facts.known(folder) == name for folder in task.folders)
    assert facts.known("esc10") is None
    assert facts.best("esc50") == pytest.approx(0.9665, abs=0.02)  # later rows do not count
    assert len(facts.leaderboard()) == 34


def test_scores_are_means_over_folds_or_those_of_the_test_split() -> None:
    assert str(report.score(FOLDED, "top1_acc")) == "0.900 ± 0.020"
    assert str(report.score({"test": {"test_mAP": 0.5}}, "mAP")) == "0.500"
    nothing_found = {"test": {"test_f": float("nan")}}
    assert report.score(nothing_found, "f") == Score(0.0)


def test_normalised_means_are_by_group() -> None:
    one = row("one", esc50=facts.best("esc50") / 2, crema_d=facts.best("crema_d"), mine=0.1)
    assert one.normalised() == pytest.approx({"esc50": 0.5, "crema_d": 1.0})
    assert one.mean("Speech") == pytest.approx(1.0)
    assert one.mean("Music") is None
    assert one.quality() == one.mean() == pytest.approx(0.75)
    assert row("own", mine=0.1, yours=0.3).quality() == pytest.approx(0.2)


def test_the_table_stands_beside_the_leaderboard(job: HearJob) -> None:
    finish(job, FOLDED)
    made = report.build([job])
    text = made.markdown()
    assert "| model | ESC-50 (top1_acc) |" in text
    assert "| tiny | 0.900 ± 0.020 |" in text
    assert "| *CP-JKU mn04_as (e1+l)* (leaderboard) | 0.918 |" in text
    assert "heareval 2021.1.3" in text
    content = json.loads(made.json())
    assert content["rows"][0]["scores"]["esc50"] == {"value": 0.9, "std": 0.02}
    assert content["rows"][0]["seconds"]["esc50-v2.0.0-full"] == {"embed": 1.0, "predict": 2.0}


def test_a_model_without_results_has_an_empty_row(job: HearJob) -> None:
    made = report.build([job])
    assert made.rows[0].scores == {}
    assert "| tiny |" in made.markdown()


def test_a_job_is_done_until_something_it_depends_on_changes(job: HearJob) -> None:
    assert job.scores() is None
    finish(job, FOLDED)
    assert job.scores() == FOLDED
    other = Described(job.model.candidate, 16_000, 8, 8, 120_000, "other weights")
    assert HearJob(other, job.task, job.out, job.effort).scores() is None
    other = replace(job.model, identity={"engine": "another"})
    assert HearJob(other, job.task, job.out, job.effort).scores() is None
    assert HearJob(job.model, job.task, job.out, Effort("fast")).scores() is None
    (job.task.path / "fold00.json").write_text("{}")
    assert job.scores() is None


def test_models_are_named_in_four_ways(tmp_path: Path) -> None:
    checkpoint = hear_kit.tiny_checkpoint("mn01_as", tmp_path)
    described = candidate(str(checkpoint))
    assert (described.label, described.module) == ("mn01_as", "hear_api")
    assert described.options == {"name": str(checkpoint)}
    named = candidate(f"mn01_as={checkpoint}", {"taps": ["mel", "b5"]})
    assert named.label == "mn01_as taps=mel+b5"
    assert named.weights == checkpoint
    assert named.folder != candidate(f"mn01_as={checkpoint}").folder
    assert candidate("module:hearbaseline").module == "hearbaseline"


@pytest.mark.parametrize("text", ["mn99_as", "nowhere.safetensors", "mn01_as=nowhere.pt"])
def test_models_that_are_not_there_are_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(EmbedderError):
        candidate(text)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_options_must_be_a_json_object(text: str) -> None:
    with pytest.raises(BadRequest, match="model-options"):
        parse_options(text)


def test_feature_sets_are_the_papers() -> None:
    from embedder import AudioEmbedder

    sizes = AudioEmbedder.build("mn10_as").tap_sizes
    total = {name: sum(sizes[tap] for tap in taps) for name, taps in cli.FEATURE_SETS.items()}
    assert total["L"] == 128
    assert total["M_B"] == 472
    assert total["M_SE"] == 560
    assert (total["H_Clf1"], total["H_Clf2"], total["H_Clf3"]) == (960, 1280, 527)
    assert total["M_B + L"] == 600


def test_the_tasks_are_listed_without_torch() -> None:
    result = CliRunner().invoke(app, ["hear", "tasks"])
    assert result.exit_code == 0
    for name in (*facts.TASKS, "esc10", "digits", "esc10_events"):
        assert name[:12] in result.output


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from eval.hear.plots import draw

    rows = [row("a", esc50=0.9, crema_d=0.6, mine=0.5), row("b", 10_000, esc50=0.5)]
    metrics = {"esc50": "top1_acc", "crema_d": "top1_acc", "mine": "mAP"}
    published = [row("OpenL3", 0, esc50=0.75, crema_d=0.55)]
    drawn = list(draw(ScoreReport(rows, metrics, published), tmp_path, "x"))
    assert drawn
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_plots_without_matplotlib_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from eval.hear.plots import complexity

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadRequest, match="matplotlib"):
        complexity(ScoreReport([row("a", mine=0.5)], {"mine": "mAP"}), tmp_path / "x.png")


def test_feature_sets_and_models_that_are_not_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "EMBEDDER_WEIGHTS_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(BadRequest, match="no feature set 'M_X'; choose from L, M_B"):
        cli.features(sets="L,M_X")
    checkpoint = hear_kit.tiny_checkpoint("mn01_as", tmp_path)
    with pytest.raises(BadRequest, match="no grid 'quick'"):
        cli.hear(model=[str(checkpoint)], out=tmp_path, grid="quick")


def test_each_feature_set_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Candidate] = []

    def keep(_: Any, candidates: list[Candidate], *__: object, **___: object) -> None:
        rows.extend(candidates)

    monkeypatch.setattr(cli, "_table", keep)
    monkeypatch.setattr("embedder.checkpoints.load", lambda *_: None)
    cli.features(model="mn04_as")
    assert [one.label for one in rows] == list(cli.FEATURE_SETS)
    assert rows[0].options == {"name": "mn04_as", "taps": ["mel"]}
    assert len({one.folder for one in rows}) == len(rows)
