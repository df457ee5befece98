"""Distillation of tags: what a student learns, at which rate and temperature."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from embedder.model import AudioEmbedder
from embedder.networks.dymn import DyMN
from embedder.networks.dynamic import KernelAttention
from embedder.zoo import MEL_32K, DyMNConfig, MNConfig, ModelSpec
from eval.data.labelled import Dataset
from eval.scores.metrics import Metrics
from eval.training.distill import (
    DistillConfig,
    Material,
    TagDistillation,
    annealing,
    ensemble_logits,
    importance,
    load_logits,
    peak_rate,
    save_logits,
    save_student,
    top_labels,
)
from eval.training.trainer import Schedule, TrainConfig, Trainer
from tests.tones import RATE, config, tones


@pytest.mark.parametrize("online", [True, False])
def test_tag_distillation_falls(tmp_path: Path, online: bool) -> None:
    data = tones(tmp_path)
    torch.manual_seed(0)
    teacher = AudioEmbedder.build("mn01_as")
    student = AudioEmbedder.build("mn01_as")
    with torch.no_grad():  # a random teacher is sure of nothing; make it sure
        cast(Any, teacher.backbone).classifier[-1].bias.normal_(0, 3)
    paths = [example.path for example in data.examples]
    logits = None
    if not online:
        save_logits(tmp_path / "l.npz", paths, ensemble_logits([teacher, teacher], paths))
        stored, logits = load_logits(tmp_path / "l.npz")
        assert stored == paths
    targets = np.zeros((len(paths), 527), np.float32)
    targets[:, 3] = 1
    material = Material(data.waves(RATE), targets, logits)
    task = TagDistillation(
        student, material, DistillConfig(batch=6, seconds=0.5), teacher if online else None
    )
    trainer = Trainer(task, tmp_path / "run", config(24, evaluate_every=8))
    trainer.run()
    assert trainer.rows[-1]["teacher_loss"] < 0.9 * trainer.rows[0]["teacher_loss"]
    assert {"label_loss", "loss"} <= set(trainer.rows[-1])


def dynamic_task(data: Dataset, dymn: DyMNConfig) -> TagDistillation:
    """A little DyMN that shall think of every clip as a sure teacher would."""
    torch.manual_seed(0)
    student = AudioEmbedder("little", ModelSpec(dymn, MEL_32K, ""))
    taught = np.random.default_rng(0).normal(0, 3, (1, 527)).astype(np.float32)
    material = Material(data.waves(RATE), None, taught.repeat(len(data.examples), 0))
    return TagDistillation(student, material, DistillConfig(batch=4, seconds=0.5))


def annealed(steps: int, every: int = 4) -> TrainConfig:
    temperature = annealing(DyMNConfig(0.1))
    return TrainConfig(
        Schedule(steps, 1e-2),
        evaluate_every=every,
        checkpoint_every=every,
        temperature=temperature,
    )


def test_a_dymn_learns_while_its_temperature_falls_from_30_to_1(tmp_path: Path) -> None:
    data = tones(tmp_path, 2)
    task = dynamic_task(data, DyMNConfig(0.1))
    model: Any = task.model
    attentions = [part for part in model.modules() if isinstance(part, KernelAttention)]
    assert attentions
    seen: list[float] = []
    once = task.loss

    def watched(batch: Any, step: int) -> tuple[Tensor, Metrics]:
        assert {part.temperature for part in attentions} == {model.temperature}
        seen.append(model.temperature)
        return once(batch, step)

    task.loss = watched  # type: ignore[method-assign]
    trainer = Trainer(task, tmp_path / "run", annealed(40))
    trainer.run()
    # 30 of 200 epochs are 6 of 40 steps.
    assert seen == pytest.approx([30 - 29 * step / 6 for step in range(6)] + [1.0] * 34)
    assert seen[0] == 30.0
    assert seen[6:] == [1.0] * 34
    assert [row["temperature"] for row in trainer.rows] == pytest.approx([15.5] + [1.0] * 9)
    assert trainer.rows[-1]["loss"] < 0.9 * trainer.rows[0]["loss"]


def test_a_killed_dymn_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    data = tones(tmp_path, 2)
    undisturbed, killed, resumed = (dynamic_task(data, DyMNConfig(0.1)) for _ in range(3))
    Trainer(undisturbed, tmp_path / "a", annealed(60)).run(stop_at=8)
    Trainer(killed, tmp_path / "b", annealed(60)).run(stop_at=4)
    again = Trainer(resumed, tmp_path / "b", annealed(60))
    assert again.step == 4
    assert isinstance(resumed.model, DyMN)
    assert resumed.model.temperature == pytest.approx(30 - 29 * 4 / 9)
    again.run(stop_at=8)
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_student_is_saved_at_its_present_temperature(tmp_path: Path) -> None:
    task = dynamic_task(tones(tmp_path, 1), DyMNConfig(0.1, temperature=30.0))
    cast(Any, task.embedder.backbone).temperature = 1.0
    save_student(tmp_path / "dymn.safetensors", task.embedder)
    loaded = AudioEmbedder.load(str(tmp_path / "dymn.safetensors"), device="cpu", runtime="eager")
    assert loaded.backbone.temperature == 1.0
    assert loaded.spec.network == DyMNConfig(0.1)


@pytest.mark.parametrize(
    ("width", "rate"),
    [(0.1, 2e-3), (0.4, 2e-3), (0.5, 1e-3), (1.0, 1e-3), (2.0, 5e-4), (3.0, 5e-4)],
)
def test_a_dymn_has_the_papers_peak_rate(width: float, rate: float) -> None:
    assert peak_rate(DyMNConfig(width), 7.0) == rate


def test_only_dynamic_convolution_is_annealed() -> None:
    assert annealing(DyMNConfig()) is not None
    assert annealing(DyMNConfig(dynamic_conv=False)) is None
    assert annealing(MNConfig()) is None
    assert peak_rate(MNConfig(), 7.0) == 7.0


def test_clips_with_rare_labels_are_drawn_more_often() -> None:
    targets = np.zeros((1000, 2), np.float32)
    targets[:990, 0] = 1
    targets[990:, 1] = 1
    chances = importance(targets)
    assert chances.sum() == pytest.approx(1)
    assert chances[-1] / chances[0] == pytest.approx(1090 / 110)


def test_top_labels_are_the_teachers_most_likely() -> None:
    truth = top_labels(np.array([[0.1, 3.0, -1.0, 2.0]], np.float32), 2)
    assert truth.tolist() == [[0, 1, 0, 1]]
