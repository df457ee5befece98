"""Whole trainings of a detector: what is learnt, resumed, saved and found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from embedder import checkpoints
from embedder.audio.decode import load_audio
from embedder.cli import app
from embedder.model import AudioEmbedder
from embedder.testing import write_wav
from embedder.zoo import (
    MEL_16K,
    FrameMNConfig,
    MNConfig,
)
from eval.data.strong import (
    open_strong,
    write_mixtures,
)
from eval.training.detector import DetectorConfig, DetectorTraining, Lessons
from eval.training.detector_network import detector_of
from eval.training.trainer import TrainConfig, Trainer
from tests.detection_lessons import (
    LABELS,
    RATE,
    lesson_plan,
    network,
    settings,
    strong_set,
    tone,
    trainer,
    training,
)
from tests.shared import SHARED, needs_shared


def test_a_killed_detector_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path / "audio", weak=True)
    undisturbed, killed, resumed = training(lessons), training(lessons), training(lessons)
    trainer(undisturbed, tmp_path / "a", 10).run()
    trainer(killed, tmp_path / "b", 10).run(stop_at=5)
    again = trainer(resumed, tmp_path / "b", 10)
    assert again.step == 5
    again.run()
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_detector_learns_tones_and_its_checkpoint_finds_them(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path / "audio")
    held_out = strong_set(tmp_path / "unmet", 4, seed=1)
    start = detector_of(network(MNConfig(0.1), MEL_16K), LABELS, "gru", 16)
    task = DetectorTraining(start, lessons, settings(backbone_peak=3e-3, mixup=0.0), held_out)
    for module in task.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # random layers have no statistics yet
    loop = trainer(task, tmp_path / "run", 30)
    loop.run()
    assert loop.rows[-1]["frame_loss"] < 0.8 * loop.rows[0]["frame_loss"]
    # Chance is 0.5. So short a training ends between 0.66 and 0.72, as roundings fall.
    assert loop.rows[-1]["mean_frame_auc"] > 0.6
    assert loop.rows[-1]["mean_frame_ap"] > 1.3 * loop.rows[-1]["chance_frame_ap"]
    task.save(tmp_path / "tones.safetensors")
    served = AudioEmbedder.load(str(tmp_path / "tones.safetensors"), device="cpu", runtime="eager")
    assert served.labels == LABELS
    wave = load_audio(held_out.paths[0], RATE)
    ours, theirs = (m.frame_probabilities(wave).values for m in (served, task.embedder))
    assert torch.allclose(ours, theirs, atol=1e-6)
    threshold = float(ours.median()) + 1e-4
    both = [model.events(wave, threshold=threshold)[0] for model in (served, task.embedder)]
    spans = [[(event.label, event.onset_s, event.offset_s) for event in found] for found in both]
    assert spans[0] == spans[1] != []


def test_a_detector_by_commands(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    def run(line: str) -> str:
        result = CliRunner().invoke(app, line.split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    made = strong_set(tmp_path / "audio", 4)
    rows = ["clip\tonset\toffset\tlabel"]
    for path, events in zip(made.paths, made.events, strict=True):
        rows += [f"{path.stem}\t{e.onset_s}\t{e.offset_s}\t{e.label}" for e in events]
    (tmp_path / "a.tsv").write_text("\n".join(rows))
    weak = tmp_path / "weak" / "high"
    path = write_wav(weak / "1-1-A.wav", tone("high", 1.0), RATE)
    write_wav(weak / "4-1-A.wav", tone("high", 1.0), RATE)
    start = network(MNConfig(0.1))
    checkpoints.save(
        tmp_path / "mn.safetensors", start.spec, start.backbone.state_dict(), start.labels
    )
    detector = f"train detector {tmp_path}/a.tsv {tmp_path}/audio --batch 4 --device cpu --epochs 1"
    first = tmp_path / "first" / "first.safetensors"
    run(
        f"{detector} --model {tmp_path}/mn.safetensors --out {first.parent} "
        f"--test {tmp_path}/a.tsv --test-audio {tmp_path}/audio"
    )
    run(f"train pseudo {tmp_path}/audio {path} --teacher {first} --out {tmp_path}/pseudo")
    output = run(
        f"{detector} --model {first} --sequence gru --dim 8 --backbone-rate 0 "
        f"--weak {tmp_path}/weak --weak-but 4 --pseudo {tmp_path}/pseudo --out {tmp_path}/second"
    )
    assert "teacher_loss" in output
    second = AudioEmbedder.load(str(tmp_path / "second" / "second.safetensors"), device="cpu")
    assert second.labels == LABELS
    assert second.spec.network == FrameMNConfig(0.1, "gru", 8, 2)
    assert "mean_frame_auc" in (tmp_path / "first" / "log.csv").read_text()


@pytest.mark.slow
@needs_shared
def test_a_detector_finds_events_of_unmet_mixtures(tmp_path: Path) -> None:
    """Minutes: the bundled model's convolutions, folds 1 to 3 to learn from, fold 4 to find."""
    data = SHARED / "audio"
    train, test = tmp_path / "train", tmp_path / "test"
    learnt = open_strong(write_mixtures(data, train, "123", 100, 100), train)
    held_out = open_strong(write_mixtures(data, test, "4", 20, 2), test, learnt.labels)
    start = detector_of(AudioEmbedder.load("sprout04", device="cpu"), learnt.labels, "tf")
    config = DetectorConfig(epochs=16, peak=2e-3, backbone_peak=2e-3, batch=8)
    task = DetectorTraining(start, Lessons(learnt), config, held_out)
    loop = TrainConfig(task.lessons.schedule(config), evaluate_every=100, checkpoint_every=100)
    last = Trainer(task, tmp_path / "run", loop, task.optimizer).run()
    assert last["mean_frame_auc"] > 0.8
    assert last["mean_frame_ap"] > 3 * last["chance_frame_ap"]
