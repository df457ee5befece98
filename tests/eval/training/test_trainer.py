"""The training loop resumes to the same weights, and never tears a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.scores.metrics import Metrics
from eval.training.soap import soap
from eval.training.trainer import CHECKPOINT, LOG, Schedule, Trainer, adam
from tests.tones import config


class Regression:
    """A task small enough to run twice; dropout draws random numbers at every step."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        layers = (nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 1))
        self.model: nn.Module = nn.Sequential(*layers)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(32, 8)).astype(np.float32))
        return x, x[:, :1] - 2 * x[:, 1:2]

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        x, y = batch
        return (self.model(x) - y).square().mean(), {"constant": 1.0}

    def evaluate(self) -> Metrics:
        x, y = self.batch(10_000)
        return {"error": float((self.model(x) - y).square().mean())}


@pytest.mark.parametrize("optimizer", [adam, soap])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, optimizer: Any) -> None:
    undisturbed = Regression()
    Trainer(undisturbed, tmp_path / "a", config(60), optimizer).run()
    # Killed between two checkpoints: what came after the last one is done again.
    killed = Regression()
    trainer = Trainer(killed, tmp_path / "b", config(60), optimizer)
    trainer.save = lambda: None if trainer.step == 33 else Trainer.save(trainer)  # type: ignore[method-assign]
    trainer.run(stop_at=33)
    resumed = Regression()
    again = Trainer(resumed, tmp_path / "b", config(60), optimizer)
    assert again.step == 30
    last = again.run()
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    rows = [(tmp_path / run / LOG).read_text().splitlines() for run in "ab"]
    assert [len(run) for run in rows] == [7, 7]
    assert last["error"] < 1.0


def test_a_kill_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(Regression(), tmp_path, config(20))
    trainer.run()
    before = (tmp_path / CHECKPOINT).read_bytes()

    def torn(state: Any, path: Path) -> None:  # noqa: ARG001
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_the_schedule_warms_up_holds_ramps_down_and_ends_at_one_percent() -> None:
    schedule = Schedule(200, 2e-3, 0.04, 0.36, 0.475)
    rates = [schedule.rate(step) for step in range(200)]
    assert rates[0] == pytest.approx(2e-3 * np.exp(-5), rel=1e-4)
    assert rates[:9] == sorted(rates[:9])
    assert rates[8:80] == [2e-3] * 72
    assert rates[80:175] == sorted(rates[80:175], reverse=True)
    assert rates[175:] == pytest.approx([2e-5] * 25)
