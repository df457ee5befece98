"""Task directories: written from own data, from recipes, and brought to other rates."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from embedder.audio.decode import load_audio
from embedder.errors import BadAudio, BadRequest
from eval.data.clips import Clip, write_wav
from eval.hear import recipes, sources
from eval.hear.plan import TaskPlan, fitted, write_task
from eval.hear.tasks import HearTask, resample
from tests.hear_kit import RATE, class_folders, sound
from tests.shared import SHARED, needs_shared


@pytest.fixture
def task(tmp_path: Path) -> HearTask:
    clips = sources.class_folders(class_folders(tmp_path / "sounds", 3), folds=3)
    return write_task(sources.plan("small", clips, 0.25), tmp_path / "tasks", RATE)


def table(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for name in {str(row[0]) for row in rows[1:]}:
        write_wav(path.parent / name, sound("noise", 0, 0.1), RATE)
    return path


def test_the_layout_is_hears(task: HearTask) -> None:
    assert task.metadata["split_mode"] == "presplit_kfold"
    assert task.metadata["evaluation"][0] == "top1_acc"
    assert task.splits == ["fold00", "fold01", "fold02"]
    assert (task.path / "labelvocabulary.csv").read_text() == (
        "idx,label\n0,clicks\n1,noise\n2,tone\n"
    )
    truth = json.loads((task.path / "fold01.json").read_text())
    assert truth == {f"{c}_{c}1.wav": [c] for c in ("clicks", "noise", "tone")}
    for split in task.splits:
        assert {p.name for p in (task.path / str(RATE) / split).iterdir()} == set(task.files(split))


@needs_shared
def test_the_layout_is_that_of_hears_own_preprocessing(task: HearTask, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(next((SHARED / "hear_tasks").glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    theirs = HearTask.read(next(tmp_path.glob("hear-*/tasks/*")))
    assert theirs.rates() == [44_100]
    assert resample(theirs, 16_000) == sum(len(theirs.files(split)) for split in theirs.splits)
    assert theirs.rates() == [16_000, 44_100]
    ours = set(task.metadata) - {"evaluation_params"}
    assert ours <= {*theirs.metadata, "nfolds"}
    assert {path.name for path in task.path.iterdir() if path.suffix == ".csv"} == {
        path.name for path in theirs.path.iterdir() if path.suffix == ".csv"
    }


def test_clips_are_padded_and_trimmed(task: HearTask) -> None:
    name = task.files("fold00")[0]
    assert load_audio(task.path / str(RATE) / "fold00" / name, RATE).size == RATE // 4
    assert fitted(np.ones(3, np.float32), 10, 0.5).tolist() == [1, 1, 1, 0, 0]
    assert fitted(np.ones(3, np.float32), 10, None).size == 3


def test_resampling_is_done_once_and_mends_what_is_missing(task: HearTask) -> None:
    assert resample(task, 32_000, workers=3) == 9
    assert resample(task, 32_000) == 0
    assert task.rates() == [RATE, 32_000]
    lost = task.path / "32000" / "fold02" / task.files("fold02")[0]
    lost.unlink()
    assert task.rates() == [RATE]
    assert resample(task, 32_000) == 1
    assert load_audio(lost, 32_000).size == 8_000


def test_a_task_without_audio_cannot_be_resampled(task: HearTask) -> None:
    (task.path / str(RATE) / "fold00" / task.files("fold00")[0]).unlink()
    with pytest.raises(BadRequest, match="complete at no sample rate"):
        resample(task, 32_000)


def test_wav_files_keep_16_bits_and_clip(tmp_path: Path) -> None:
    samples = np.array([0.5, -1.0, 2.0, 1 / 32_768], np.float32)
    write_wav(tmp_path / "a.wav", samples, RATE)
    read = load_audio(tmp_path / "a.wav", RATE)
    assert read.tolist() == [0.5, -1.0, 32_767 / 32_768, 1 / 32_768]


def test_split_folders_are_splits(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        class_folders(tmp_path / split, 1)
    plan = sources.plan("splits", sources.class_folders(tmp_path))
    assert plan.splits == ["train", "valid", "test"]
    assert len(plan.clips) == 9


def test_a_csv_of_labels_may_be_multilabel(tmp_path: Path) -> None:
    rows: list[list[object]] = [["Path", "Category", "fold"]]
    rows += [["a.wav", "x; y", 0], ["b.wav", "x", 1], ["c.wav", "", 2], ["c.wav", "y", 2]]
    plan = sources.plan("multi", sources.table(table(tmp_path / "t.csv", rows)))
    assert plan.prediction == "multilabel"
    assert plan.scores == ("mAP", "aucroc")
    assert [clip.labels for clip in plan.clips] == [("x", "y"), ("x",), ("y",)]
    assert plan.splits == ["fold00", "fold01", "fold02"]


def test_a_csv_of_events_gives_milliseconds(tmp_path: Path) -> None:
    rows: list[list[object]] = [["file", "label", "start", "end", "split"]]
    rows += [["a.wav", "x", 0.1, 0.25, "train"], ["a.wav", "y", 0.5, 1, "train"]]
    rows += [["b.wav", "x", 0, 1, "valid"], ["c.wav", "", "", "", "test"]]
    plan = sources.plan("events", sources.table(table(tmp_path / "t.csv", rows)), 1.0)
    assert plan.kind == "event"
    task = write_task(plan, tmp_path / "tasks", RATE)
    truth = json.loads((task.path / "train.json").read_text())
    assert truth["a.wav"] == [
        {"label": "x", "start": 100.0, "end": 250.0},
        {"label": "y", "start": 500.0, "end": 1000.0},
    ]
    assert json.loads((task.path / "test.json").read_text()) == {"c.wav": []}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "fold"], ["a.wav", 0]], "lacks columns: label"),
        ([["file", "label", "fold", "onset"], ["a.wav", "x", 0, 1]], "only one of"),
        ([["file", "label", "fold"], ["a.wav", "x", ""]], "line 2"),
        ([["file", "label", "fold"], ["a.wav", "x", 0], ["a.wav", "y", 1]], "several splits"),
        (
            [["file", "label", "fold", "onset", "offset"], ["a.wav", "x", 0, "now", 1]],
            "no number",
        ),
    ],
)
def test_a_csv_that_makes_no_sense_says_where(
    tmp_path: Path, rows: list[list[object]], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        sources.table(table(tmp_path / "t.csv", rows))


def test_what_hear_cannot_take_is_refused(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "sounds", 3)
    with pytest.raises(BadRequest, match="at least 3"):
        sources.class_folders(folder, folds=2)
    with pytest.raises(BadRequest, match="no class folders"):
        sources.class_folders(tmp_path / "sounds" / "tone")
    with pytest.raises(BadRequest, match="no name for a task"):
        sources.plan("../x", [])
    clips = sources.class_folders(folder, folds=3)
    with pytest.raises(BadRequest, match="two clips named"):
        write_task(sources.plan("twice", [*clips, clips[0]]), tmp_path, RATE)
    two = Clip("two", clips[0].sound, "fold00", ("x", "y"))
    both = TaskPlan("both", [*clips, two], "scene", "multiclass", ("top1_acc",), None)
    with pytest.raises(BadRequest, match="has 2 labels"):
        write_task(both, tmp_path, RATE)
    write_task(sources.plan("once", clips), tmp_path, RATE)
    with pytest.raises(BadRequest, match="exists"):
        write_task(sources.plan("once", clips), tmp_path, RATE)
    with pytest.raises(BadRequest, match="no HEAR task"):
        HearTask.read(tmp_path / "sounds")


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    clips = sources.class_folders(class_folders(tmp_path / "sounds", 3), folds=3)
    (tmp_path / "sounds" / "tone" / "tone0.wav").write_bytes(b"broken")
    with pytest.raises(BadAudio):
        write_task(sources.plan("broken", clips), tmp_path / "tasks", RATE)
    assert list((tmp_path / "tasks").iterdir()) == []


@needs_shared
def test_recipes_split_as_their_data_sets_say() -> None:
    data = SHARED / "audio"
    esc10 = recipes.esc10(data)
    assert len(esc10.clips) == 320
    assert esc10.splits == ["fold01", "fold02", "fold03", "fold04"]
    digits = recipes.digits(data)
    assert digits.splits == ["train", "valid", "test"]
    sizes = {split: sum(c.split == split for c in digits.clips) for split in digits.splits}
    assert sizes == {"train": 1_600, "valid": 200, "test": 200}


@needs_shared
def test_mixtures_repeat_and_keep_their_recordings_apart() -> None:
    data = SHARED / "audio"
    first, second = recipes.events(data), recipes.events(data)
    assert [clip.events for clip in first.clips] == [clip.events for clip in second.clips]
    one, same = first.clips[0].sound(RATE), second.clips[0].sound(RATE)
    assert np.array_equal(one, same)
    assert one.size == 10 * RATE
    event = first.clips[0].events[0]
    inside = one[round(event.onset_s * RATE) : round(event.offset_s * RATE)]
    assert np.square(inside).mean() > 10 * np.square(one[: RATE // 10]).mean()


def test_a_recipe_without_its_data_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="--data"):
        recipes.esc10(tmp_path)
