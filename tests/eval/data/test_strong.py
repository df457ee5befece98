"""Strong labels, weak labels and pseudo-labels as targets of frames and clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from embedder.audio.decode import load_audio
from embedder.errors import BadRequest
from embedder.zoo import (
    FrameMNConfig,
)
from eval.data.mixtures import mixtures
from eval.data.strong import (
    PseudoLabels,
    clip_targets,
    frame_targets,
    open_strong,
    shuffled,
    write_mixtures,
    write_pseudo,
)
from eval.scores.sed import TrueEvent, read_truth
from tests.detection_lessons import (
    FRAMES,
    LABELS,
    RATE,
    lesson_plan,
    network,
    strong_set,
    training,
    weak_set,
)
from tests.shared import SHARED, needs_shared


def test_frame_targets_round_to_frames_and_keep_the_shortest() -> None:
    events = [TrueEvent(0.10, 0.21, "low"), TrueEvent(0.5, 0.501, "high")]
    found = frame_targets(events, LABELS, 0, 20)
    assert found[:, 1].nonzero()[0].tolist() == [2, 3, 4]  # 100 to 210 ms is 2.5 to 5.25 frames
    assert found[:, 0].nonzero()[0].tolist() == [12]
    assert np.array_equal(frame_targets(events, LABELS, 4, 9), found[4:13])


def test_weak_labels_that_nobody_judged_are_unknown(tmp_path: Path) -> None:
    targets = clip_targets(weak_set(tmp_path), LABELS)
    assert (targets[:, 0] == 1).all()
    assert np.isnan(targets[:, 1]).all()
    with pytest.raises(BadRequest, match="none of the labels"):
        clip_targets(weak_set(tmp_path), ("dog",))


def test_annotations_and_audio_make_a_strong_set(tmp_path: Path) -> None:
    made = strong_set(tmp_path / "audio", 2)
    rows = ["clip\tonset\toffset\tlabel", "missing\t0\t1\tlow", "clip0-1"]
    rows += [f"clip0-0\t{e.onset_s}\t{e.offset_s}\t{e.label}" for e in made.events[0]]
    (tmp_path / "a.tsv").write_text("\n".join(rows))
    found = open_strong(tmp_path / "a.tsv", tmp_path / "audio")
    assert found.labels == LABELS
    assert [path.stem for path in found.paths] == ["clip0-1", "clip0-0"]
    assert found.events == ((), tuple(sorted(made.events[0])))
    only = open_strong(tmp_path / "a.tsv", tmp_path / "audio", ["low"])
    assert {event.label for event in only.events[1]} == {"low"}


def test_every_example_comes_once_an_epoch() -> None:
    seen = [index for step in range(21) for index in shuffled(7, 3, step, [0])]
    for epoch in range(9):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]
    assert len(shuffled(2, 5, 0, [0])) == 5


def test_pseudo_labels_come_by_name_and_place(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path, pseudo=True)
    assert lessons.pseudo is not None
    path = lessons.strong.paths[0]
    stored = np.load(tmp_path / "pseudo" / f"{path.stem}.npy").astype(np.float32)
    found = lessons.pseudo.targets(path, 20, 20)
    assert np.array_equal(found[:10], stored[20:][:, [2, 0]])
    assert not found[10:].any()
    with pytest.raises(BadRequest, match="lack dog"):
        PseudoLabels.open(tmp_path / "pseudo", ["low", "dog"])
    with pytest.raises(BadRequest, match="no pseudo-labels of"):
        lessons.pseudo.targets(tmp_path / "unheard.wav", 0, 1)


def test_an_ensemble_writes_its_mean(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path / "audio")
    teachers = [training(lessons).embedder, network(FrameMNConfig(0.1, n_classes=2), labels=LABELS)]
    path = lessons.strong.paths[0]
    assert list(write_pseudo(tmp_path / "out", teachers, [path])) == [path]
    wave = load_audio(path, RATE)
    wanted = sum(teacher.frame_probabilities(wave).values[0] for teacher in teachers) / 2
    found = PseudoLabels.open(tmp_path / "out", ["low", "high"]).targets(path, 0, FRAMES)
    assert isinstance(wanted, Tensor)
    assert np.allclose(found, wanted.numpy()[:, [1, 0]], atol=1e-3)


@needs_shared
def test_mixtures_are_written_as_they_were_made(tmp_path: Path) -> None:
    data = SHARED / "audio"
    made = mixtures(data, "4", 2, 5, "test")
    annotations = write_mixtures(data, tmp_path / "test", "4", 2, 5)
    truth = read_truth(annotations)
    assert list(truth) == [clip.name for clip in made] == ["test000", "test001"]
    for clip in made:
        wanted = [TrueEvent(e.onset, e.offset, e.label.replace("_", " ")) for e in clip.events]
        assert truth[clip.name] == sorted(wanted)
        wave = load_audio(tmp_path / "test" / f"{clip.name}.wav", 32_000)
        assert np.abs(wave - clip.sound(32_000)).max() < 1e-3
    with pytest.raises(BadRequest, match="folds '9'"):
        mixtures(data, "9", 1, 0, "train")
