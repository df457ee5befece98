"""One model on one task: embeddings, then predictions, each by the official runner.

    OUT/MODEL/TASK.json               what the scores were made from
    OUT/MODEL/TASK.log                everything the kit said
    OUT/MODEL/embeddings/*/TASK/      what the kit wrote, scores included

A job whose inputs are unchanged continues, or is skipped; one whose weights, task, options or
grid changed starts anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Final

from eval.hear.environment import PACKAGES, Kit, KitFailed
from eval.hear.models import Described
from eval.hear.tasks import Task

SCORES: Final = "test.predicted-scores.json"
EMBEDDED: Final = ".done.embeddings"
PREDICTED: Final = "prediction-done.json"
POLL_SECONDS: Final = 0.5

# Called with what the job does now, and steps done and to do of it.
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard heareval searches: its grid, and how many points of it."""

    grid: str = "default"
    grid_points: int = 8


@dataclass(frozen=True, slots=True)
class Job:
    """A model, a task and where the results go."""

    model: Described
    task: Task
    out: Path
    effort: Effort

    @property
    def folder(self) -> Path:
        """Of this model, for all tasks."""
        return self.out / self.model.candidate.folder

    @property
    def record(self) -> Path:
        """What the results were made from."""
        return self.folder / f"{self.task.name}.json"

    @property
    def log(self) -> Path:
        """The kit's output."""
        return self.folder / f"{self.task.name}.log"

    def request(self) -> dict[str, Any]:
        """All that decides the scores."""
        one = self.model.candidate
        return {
            "label": one.label,
            "module": one.module,
            "options": dict(one.options),
            "state_sha256": self.model.state_sha256,
            "identity": dict(self.model.identity),
            "task": self.task.name,
            "task_sha256": self.task.fingerprint(),
            "sample_rate": self.model.sample_rate,
            "grid": self.effort.grid,
            "grid_points": self.effort.grid_points,
            "kit": list(PACKAGES),
        }

    def results(self) -> Path | None:
        """Where heareval put this task, once it has begun."""
        return next(self.folder.glob(f"embeddings/*/{self.task.name}"), None)

    def scores(self) -> dict[str, Any] | None:
        """heareval's own scores of exactly this request, if they are there."""
        found = self.results()
        if found is None or not (found / PREDICTED).is_file() or not self._is_current():
            return None
        scores: dict[str, Any] = json.loads((found / SCORES).read_text("utf-8"))
        return scores

    def seconds(self) -> dict[str, float]:
        """What heareval says embedding and predicting took."""
        found = self.results()
        if found is None:
            return {}
        embedding = json.loads((found / "profile.embeddings.json").read_text("utf-8"))
        predicting = json.loads((found / PREDICTED).read_text("utf-8"))
        return {"embed": embedding["time_elapsed"], "predict": predicting["time"]}

    def run(self, kit: Kit, threads: int, watch: Watch, stop: Event) -> None:
        """Do what is not done yet; KitFailed says where the log is."""
        if not self._is_current():
            self._forget()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record.write_text(json.dumps(self.request(), indent=1), "utf-8")
        found = self.results()
        if found is None or not (found / EMBEDDED).is_file():
            total = sum(len(self.task.files(split)) for split in self.task.splits)
            self._call(
                kit.command(*self._embed()),
                kit.variables(threads),
                lambda: watch("embedding", self._embedded(), total),
                stop,
            )
        found = self.results()
        if found is None:
            raise KitFailed(f"heareval wrote no embeddings; see {self.log}")
        if not (found / PREDICTED).is_file():
            folds = (
                len(self.task.splits) if self.task.metadata["split_mode"] != "trainvaltest" else 1
            )
            total = self.effort.grid_points + folds
            log = found / "prediction.log"
            log.unlink(missing_ok=True)  # of a run that was interrupted
            command = kit.command(*self._predict(found.relative_to(self.folder)))
            self._call(
                command, kit.variables(), lambda: watch("predicting", _trained(log), total), stop
            )
            shutil.rmtree(self.folder / "logs" / found.relative_to(self.folder), ignore_errors=True)

    def _is_current(self) -> bool:
        if not self.record.is_file():
            return False
        recorded: object = json.loads(self.record.read_text("utf-8"))
        return recorded == self.request()

    def _forget(self) -> None:
        found = self.results()
        if found is not None:
            shutil.rmtree(found)
        self.log.unlink(missing_ok=True)

    def _embed(self) -> list[str]:
        one = self.model.candidate
        weights = ["--model", str(one.weights)] if one.weights else []
        return [
            *("heareval.embeddings.runner", one.module, *weights),
            *("--tasks-dir", str(self.task.path.parent.resolve()), "--task", self.task.name),
            *("--embeddings-dir", "embeddings", "--model-options", json.dumps(dict(one.options))),
        ]

    def _predict(self, results: Path) -> list[str]:
        effort = self.effort
        points = str(effort.grid_points)
        return [
            *("heareval.predictions.runner", str(results)),
            *("--grid", effort.grid, "--grid-points", points),
        ]

    def _call(
        self, command: list[str], variables: dict[str, str], look: Callable[[], None], stop: Event
    ) -> None:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=variables, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                while process.poll() is None:
                    if stop.wait(POLL_SECONDS):
                        raise KitFailed("interrupted; the same command continues")
                    look()
            finally:
                process.terminate()
                process.wait()
        if process.returncode:
            lines = self.log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise KitFailed(f"{lines[0] if lines else 'heareval failed'}; see {self.log}")

    def _embedded(self) -> int:
        found = self.results()
        if found is None:
            return 0
        splits = (found / split for split in self.task.splits)
        names = (name for split in splits if split.is_dir() for name in os.listdir(split))  # noqa: PTH208
        return sum(name.endswith(".embedding.npy") for name in names)


def _trained(log: Path) -> int:
    """Networks whose training has begun, but one: grid points, then the other folds."""
    if not log.is_file():
        return 0
    lines = log.read_text("utf-8", "replace").splitlines()
    begun = sum(" Grid point " in line or "Training split " in line for line in lines)
    return max(0, begun - 1)
