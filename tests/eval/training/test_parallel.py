"""Two processes that train together do what one process does with both their batches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval.scores.metrics import Metrics
from eval.training import parallel
from eval.training.trainer import Schedule, TrainConfig, Trainer
from tests.shared import ROOT

STEPS = 4
BATCH = 16  # of each process


class Halves:
    """A regression whose batches are cut in parts; a layer rests in every other step."""

    def __init__(self, part: int, parts: int) -> None:
        torch.manual_seed(part)  # only process 0 starts from seed 0
        self.parts = nn.ModuleDict(
            {"norm": nn.BatchNorm1d(8).eval(), "often": nn.Linear(8, 1), "seldom": nn.Linear(8, 1)}
        )
        self.model: nn.Module = self.parts
        self.rows = slice(part * 2 * BATCH // parts, (part + 1) * 2 * BATCH // parts)
        self.parts["norm"].get_buffer("running_mean").fill_(float(part))

    def batch(self, step: int) -> Tensor:
        values = np.random.default_rng(step).normal(size=(2 * BATCH, 8)).astype(np.float32)
        return torch.from_numpy(values)[self.rows]

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Metrics]:
        self.parts["norm"].eval()
        x = self.parts["norm"](batch)
        y = self.parts["often"](x)
        if step % 2:
            y = y + self.parts["seldom"](x)
        return (y - batch[:, :1]).square().mean(), {}

    def evaluate(self) -> Metrics:
        return {}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Steps as large as the gradients, which Adam would hide."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def train(folder: Path, part: int, parts: int) -> dict[str, Tensor]:
    halves = Halves(part, parts)
    config = TrainConfig(Schedule(STEPS, 0.1, warm_up=0.0), clip_norm=1e9)
    Trainer(halves, folder, config, sgd).run()
    return halves.model.state_dict()


def test_two_processes_train_as_one_with_both_batches(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.eval.training.test_parallel", str(tmp_path)],
            env=os.environ | address | {"RANK": str(rank)},
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait() for process in ranks] == [0, 0]
    finally:  # a process whose partner died waits for half an hour
        for process in ranks:
            process.kill()
            process.wait()
    alone = train(tmp_path / "alone", 0, 1)
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, atol=1e-6, rtol=1e-5)
    start = Halves(0, 1).model.state_dict()
    assert not torch.allclose(alone["seldom.weight"], start["seldom.weight"], atol=1e-3)
    assert not (tmp_path / "run1").joinpath("checkpoint.pt").exists()


def test_one_process_has_the_loss_itself() -> None:
    halves = Halves(0, 1)
    assert parallel.averaging(halves.model, halves.loss) == halves.loss


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, folder = parallel.rank(), Path(sys.argv[1])
    torch.save(train(folder / f"run{rank}", rank, parallel.world()), folder / f"{rank}.pt")
