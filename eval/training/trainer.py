"""The one training loop; an Objective says what is learnt from what.

The batch of a step, and every random number drawn in that step, depend on (seed, step) alone. So
a run resumed from its checkpoint ends with the same weights as a run that was never interrupted,
on a CPU and with the same number of threads.
"""

from __future__ import annotations

import csv
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from embedder.files import atomic
from embedder.networks.dymn import DyMN, TemperatureSchedule
from eval.scores.metrics import Metrics
from eval.training import parallel

CHECKPOINT: Final = "checkpoint.pt"
LOG: Final = "log.csv"


class Objective(Protocol):
    """What to learn. `batch` is called ahead of time in threads and must be pure."""

    model: nn.Module

    def batch(self, step: int) -> Any:
        """The training material of one step, tensors in (nested) tuples, on the CPU."""

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Metrics]:
        """The scalar to minimise, and numbers for the log."""

    def evaluate(self) -> Metrics:
        """Scores on held-out material; the model is in eval mode."""


class Rates(Protocol):
    """The learning rate of each step of a run."""

    @property
    def steps(self) -> int:
        """How many steps the run has."""

    def rate(self, step: int) -> float:
        """The learning rate of a step in [0, steps)."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Exponential warm-up, plateau at `peak`, linear ramp-down, and a fine phase at 1 %.

    The lengths of the phases are shares of all steps (arXiv 2310.15648, IV-A, V-B).
    """

    steps: int
    peak: float
    warm_up: float = 0.04
    plateau: float = 0.36
    ramp_down: float = 0.475
    fine: float = 0.01  # of the peak, after the ramp

    def rate(self, step: int) -> float:
        """The learning rate of a step in [0, steps)."""
        at = step / self.steps
        if at < self.warm_up:  # e^-5 .. 1
            return float(self.peak * torch.exp(torch.tensor(-5.0 * (1 - at / self.warm_up) ** 2)))
        ramp = (at - self.warm_up - self.plateau) / self.ramp_down if self.ramp_down else 1.0
        return self.peak * (1.0 - (1.0 - self.fine) * min(max(ramp, 0.0), 1.0))


@dataclass(frozen=True, slots=True)
class Cosine:
    """Linear warm-up to `peak`, then half a cosine to nothing (arXiv 2503.11373, III-B).

    `warm_up` is a share of all steps: in the paper 5000 steps of 120 epochs of AudioSet Strong.
    """

    steps: int
    peak: float
    warm_up: float = 5000 / (120 * 100_911 / 256)

    def rate(self, step: int) -> float:
        """The learning rate of a step in [0, steps), never quite 0."""
        at = (step + 1) / (self.steps + 1)
        if at < self.warm_up:
            return self.peak * at / self.warm_up
        after = (at - self.warm_up) / (1 - self.warm_up)
        return self.peak * 0.5 * (1 + math.cos(math.pi * after))


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a run is carried out.

    `temperature` anneals a DyMN's kernel attention: its schedule is given in epochs, and the whole
    run counts as `epochs` epochs, however many steps it has. None leaves the temperature alone.
    """

    schedule: Rates
    seed: int = 0
    evaluate_every: int = 500
    checkpoint_every: int = 500
    clip_norm: float = 1.0
    workers: int = 1  # threads that make batches ahead
    ahead: int = 4
    device: str = "cpu"
    amp: bool = False  # bfloat16, CUDA only
    temperature: TemperatureSchedule | None = None
    epochs: float = 200.0

    def temperature_at(self, step: int) -> float | None:
        """The temperature of a DyMN in a step; None where it is not annealed."""
        if self.temperature is None:
            return None
        return self.temperature.at(self.epochs * step / self.schedule.steps)


MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Adam, the papers' optimiser, with weight decay 0, which section V-B calls critical."""
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.0)


class Trainer:
    """Trains an objective's model in a folder, from the checkpoint there if there is one.

    A parameter group of the optimiser may have a "share", which multiplies the schedule's rate.
    """

    def __init__(
        self,
        objective: Objective,
        folder: Path,
        config: TrainConfig,
        optimizer: MakeOptimizer = adam,
        report: Callable[[Metrics], None] = lambda _: None,
    ) -> None:
        self.objective, self.folder = objective, folder
        self.config, self.report = config, report
        self.objective.model.to(config.device)
        self.optimizer = optimizer(objective.model)
        self.step = 0
        self.rows: list[Metrics] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).is_file():
            self._restore()
        self._anneal()
        self._loss = parallel.averaging(objective.model, objective.loss)

    def run(self, stop_at: int | None = None) -> Metrics:
        """Train to the end, or to step `stop_at`, and return the last row of the log."""
        cfg = self.config
        stop = min(cfg.schedule.steps, stop_at or cfg.schedule.steps)
        began, counted = time.monotonic(), 0
        seen: dict[str, list[float]] = {}
        for batch in self._batches(self.step, stop):
            metrics = self._train_step(batch)
            for key, value in metrics.items():
                seen.setdefault(key, []).append(value)
            counted += 1
            self.step += 1
            last = self.step == stop
            if self.step % cfg.evaluate_every == 0 or last:
                means = {key: sum(values) / len(values) for key, values in seen.items()}
                seconds = (time.monotonic() - began) / counted
                self._log({"step": self.step, "seconds_per_step": seconds, **means})
                began, counted = time.monotonic(), 0
                seen.clear()
            if self.step % cfg.checkpoint_every == 0 or last:
                self.save()
        return self.rows[-1] if self.rows else {}

    def save(self) -> None:
        """Write the checkpoint; a process killed meanwhile leaves the previous one whole."""
        if parallel.rank() != 0:
            return
        state = {
            "step": self.step,
            "model": self.objective.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rows": self.rows,
        }
        with atomic(self.folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def _restore(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, map_location="cpu", weights_only=True)
        self.objective.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.rows = state["step"], state["rows"]

    def _train_step(self, batch: Any) -> Metrics:
        cfg = self.config
        torch.manual_seed(cfg.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = cfg.schedule.rate(self.step) * group.get("share", 1.0)
        self._anneal()
        self.objective.model.train()
        kind = torch.device(cfg.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=cfg.amp):
            loss, metrics = self._loss(_to(batch, cfg.device), self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.objective.model.parameters(), cfg.clip_norm)
        self.optimizer.step()
        return {"loss": float(loss.detach()), **metrics}

    def _anneal(self) -> None:
        temperature = self.config.temperature_at(self.step)
        if temperature is not None and isinstance(self.objective.model, DyMN):
            self.objective.model.temperature = temperature

    def _batches(self, first: int, stop: int) -> Iterator[Any]:
        """The batches of these steps in order, made ahead of time in threads."""
        steps = iter(range(first, stop))
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self.config.workers) as pool:
            for step in steps:
                waiting.append(pool.submit(self.objective.batch, step))
                if len(waiting) > self.config.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _log(self, row: Metrics) -> None:
        if parallel.rank() != 0:
            return
        self.objective.model.eval()
        with torch.inference_mode():
            row |= self.objective.evaluate()
        row["learning_rate"] = self.config.schedule.rate(self.step - 1)
        if isinstance(self.objective.model, DyMN) and self.objective.model.temperature is not None:
            row["temperature"] = self.objective.model.temperature
        self.rows.append(row)
        write_csv(self.folder / LOG, self.rows)
        self.report(row)


def write_csv(path: Path, rows: list[Metrics]) -> None:
    """Write rows as CSV, with the columns of all rows in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)


def _to(batch: Any, device: str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_to(value, device) for value in batch)
    return batch
