"""Training of a detector: batches, losses, rates, and which weights it starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from embedder.audio.decode import load_audio
from embedder.errors import BadRequest
from embedder.zoo import (
    MEL_16K,
    MEL_32K,
    DyMNConfig,
    FrameMNConfig,
    MNConfig,
)
from eval.training.detector import parameter_groups
from eval.training.detector_network import detector_of, sequence_dim
from eval.training.trainer import Cosine
from tests.detection_lessons import FRAMES, LABELS, RATE, lesson_plan, network, trainer, training


def test_half_of_each_batch_is_weak(tmp_path: Path) -> None:
    task = training(lesson_plan(tmp_path, weak=True), mixup=0.0)
    weak = task.lessons.weak
    assert weak is not None
    log_mel = task.embedder.frontend
    known = [
        log_mel(torch.from_numpy(load_audio(example.path, RATE))[None])[0]
        for example in weak.examples
    ]
    for step in range(3):
        mel, frames, clips, taught = task.batch(step)
        assert mel.shape == (8, 128, 120)
        assert frames.shape == (4, FRAMES, 2)
        assert not clips[:4].isnan().any()
        assert clips[4:].isnan().tolist() == [[False, True]] * 4
        assert taught.numel() == 0
        alike = [any(torch.allclose(row, one, atol=1e-4) for one in known) for row in mel]
        assert alike == [False] * 4 + [True] * 4


def test_mixing_keeps_the_halves_apart_and_its_labels_with_them(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path, weak=True, pseudo=True)
    plain, mixed = training(lessons, mixup=0.0).batch(0), training(lessons, mixup=5.0).batch(0)
    assert mixed.taught.shape == (8, FRAMES, 2)
    for half in (slice(0, 4), slice(4, 8)):
        # Each mixed example is its own and one of its half, in shares that all its parts have.
        for row in range(half.start, half.stop):
            fits = []
            for other in range(half.start, half.stop):
                apart = plain.mel[row] - plain.mel[other]
                if not apart.any():
                    continue
                share = ((mixed.mel[row] - plain.mel[other]) * apart).sum() / apart.square().sum()
                blend = share * plain.mel[row] + (1 - share) * plain.mel[other]
                taught = share * plain.taught[row] + (1 - share) * plain.taught[other]
                if torch.allclose(blend, mixed.mel[row], atol=1e-4):
                    fits.append(torch.allclose(taught, mixed.taught[row], atol=1e-4))
            assert fits
            assert all(fits)


def test_the_loss_is_a_tenth_labels_and_nine_tenths_pseudo_labels(tmp_path: Path) -> None:
    task = training(lesson_plan(tmp_path, weak=True, pseudo=True))
    batch = task.batch(0)
    loss, metrics = task.loss(batch, 0)
    logits = task.model.detect(batch.mel)  # type: ignore[operator]
    bce = functional.binary_cross_entropy_with_logits
    frames = bce(logits.strong[:4], batch.frames)
    known = ~batch.clips.isnan()
    clips = bce(logits.weak[known], batch.clips[known])
    taught = bce(logits.strong, batch.taught)
    assert torch.allclose(loss, 0.1 * (frames + clips) + 0.9 * taught)
    assert metrics["teacher_loss"] == pytest.approx(taught.item())
    alone, _ = task.loss(batch._replace(taught=torch.empty(0)), 0)
    assert torch.allclose(alone, frames + clips)


def test_each_stage_before_learns_at_nine_tenths_of_the_next_ones_rate(tmp_path: Path) -> None:
    task = training(lesson_plan(tmp_path / "audio"), backbone_peak=1e-3)
    loop = trainer(task, tmp_path / "run", 20)
    loop.run(stop_at=4)
    share = loop.config.schedule.rate(3) / 3e-3
    rates = [group["lr"] for group in loop.optimizer.param_groups]
    assert rates[:17] == pytest.approx([1e-3 * 0.9**n * share for n in range(17)], rel=1e-9)
    assert rates[17] == pytest.approx(3e-3 * share, rel=1e-9)
    assert len(rates) == 18
    model: Any = task.model
    groups = parameter_groups(model, task.config)
    last = {id(p) for p in model.model["fmn"].features[16].parameters()}
    assert {id(p) for p in groups[0]["params"]} == last
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_a_frozen_backbone_does_not_move(tmp_path: Path) -> None:
    task = training(lesson_plan(tmp_path / "audio"), backbone_peak=0.0)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    trainer(task, tmp_path / "run", 4).run()
    moved = {
        name
        for name, value in task.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert {"strong_head.weight", "weak_head.weight"} < moved
    assert not [name for name in moved if name.startswith("model.")]


def test_a_backbone_is_kept_and_so_is_what_fits() -> None:
    mn = network(MNConfig(0.1))
    detector = detector_of(mn, LABELS, "hybrid")
    assert detector.spec.network == FrameMNConfig(0.1, "hybrid", 32, 2)
    ours, theirs = detector.backbone.state_dict(), mn.backbone.state_dict()
    for name in theirs:
        if name.startswith("features."):
            assert torch.equal(ours[f"model.fmn.{name}"], theirs[name])
    same = detector_of(detector, LABELS).backbone.state_dict()
    assert all(torch.equal(same[name], value) for name, value in ours.items())
    other = detector_of(detector, ("a", "b"), seed=1).backbone.state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], other[name])}
    assert changed == {
        f"{head}_head.{part}" for head in ("strong", "weak") for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("width", "dim"), [(0.4, 104), (0.6, 160), (1.0, 256), (2.0, 512), (3.0, 768)]
)
def test_dimensions_scale_as_published(width: float, dim: int) -> None:
    assert sequence_dim(width) == dim


def test_what_no_detector_can_start_from_is_refused() -> None:
    with pytest.raises(BadRequest, match="no MN"):
        detector_of(network(DyMNConfig(0.1), MEL_32K), LABELS)
    with pytest.raises(BadRequest, match="hop by 10 ms"):
        detector_of(network(MNConfig(0.1), replace(MEL_16K, hop=80)), LABELS)
    with pytest.raises(BadRequest, match="does not fit"):
        detector_of(network(MNConfig(0.1, reduced_tail=True)), LABELS)


def test_the_cosine_warms_up_to_its_peak_and_falls_to_nothing() -> None:
    rates = [Cosine(99, 2.0, warm_up=0.25).rate(step) for step in range(99)]
    assert rates[:24] == pytest.approx([2.0 * (step + 1) / 25 for step in range(24)])
    assert rates[24] == 2.0
    assert rates[61] == pytest.approx(2.0 * 0.5 * (1 + np.cos(np.pi * (0.62 - 0.25) / 0.75)))
    assert rates[24:] == sorted(rates[24:], reverse=True)
    assert 0 < rates[-1] < 2e-3
