"""One model on one task: embeddings, then predictions, each by the official runner.

    OUT/MODEL/TASK.json               all that decides the scores
    OUT/MODEL/TASK.log                the kit's output
    OUT/MODEL/embeddings/*/TASK/      the kit's files, scores included

A job with the same inputs as before continues, or is skipped if it was finished. If the weights,
the task, the options or the grid have changed, it starts again.
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
from eval.hear.tasks import HearTask

SCORES: Final = "test.predicted-scores.json"
EMBEDDED: Final = ".done.embeddings"
PREDICTED: Final = "prediction-done.json"
POLL_SECONDS: Final = 0.5

OnProgress = Callable[[str, int, int], None]  # name of the phase, steps done, steps in all


@dataclass(frozen=True, slots=True)
class Effort:
    """How long heareval searches: the grid of hyper-parameters, and how many points of it."""

    grid: str = "default"
    grid_points: int = 8


@dataclass(frozen=True, slots=True)
class HearJob:
    """A model, a task and the folder for results."""

    model: Described
    task: HearTask
    out: Path
    effort: Effort

    @property
    def folder(self) -> Path:
        """The folder with all results of this model."""
        return self.out / self.model.candidate.folder

    @property
    def record(self) -> Path:
        """The file that says what the results were made from."""
        return self.folder / f"{self.task.name}.json"

    @property
    def log(self) -> Path:
        """The file with the kit's output."""
        return self.folder / f"{self.task.name}.log"

    def request(self) -> dict[str, Any]:
        """Return all that decides the scores, as JSON values."""
        candidate = self.model.candidate
        return {
            "label": candidate.label,
            "module": candidate.module,
            "options": dict(candidate.options),
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
        """Return the folder that heareval writes this task to, or None if it has not begun."""
        return next(self.folder.glob(f"embeddings/*/{self.task.name}"), None)

    def scores(self) -> dict[str, Any] | None:
        """Return heareval's scores of exactly this request, or None if it is not finished."""
        results = self.results()
        if results is None or not (results / PREDICTED).is_file() or not self._is_current():
            return None
        scores: dict[str, Any] = json.loads((results / SCORES).read_text("utf-8"))
        return scores

    def seconds(self) -> dict[str, float]:
        """Return how long embedding and predicting took, by heareval's own clock."""
        results = self.results()
        if results is None:
            return {}
        embedding = json.loads((results / "profile.embeddings.json").read_text("utf-8"))
        predicting = json.loads((results / PREDICTED).read_text("utf-8"))
        return {"embed": embedding["time_elapsed"], "predict": predicting["time"]}

    def run(self, kit: Kit, threads: int, on_progress: OnProgress, stop: Event) -> None:
        """Do all that is not done yet; `stop` ends it early.

        Raises KitFailed, which names the log, if a part of the kit fails or `stop` is set.
        """
        if not self._is_current():
            self._forget()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record.write_text(json.dumps(self.request(), indent=1), "utf-8")
        results = self.results()
        if results is None or not (results / EMBEDDED).is_file():
            total = sum(len(self.task.files(split)) for split in self.task.splits)
            self._call(
                kit.command(*self._embed()),
                kit.variables(threads),
                lambda: on_progress("embedding", self._embedded(), total),
                stop,
            )
        results = self.results()
        if results is None:
            raise KitFailed(f"heareval wrote no embeddings; see {self.log}")
        if not (results / PREDICTED).is_file():
            folds = (
                len(self.task.splits) if self.task.metadata["split_mode"] != "trainvaltest" else 1
            )
            total = self.effort.grid_points + folds
            log = results / "prediction.log"
            log.unlink(missing_ok=True)  # an interrupted run may have left it
            command = kit.command(*self._predict(results.relative_to(self.folder)))
            self._call(
                command,
                kit.variables(),
                lambda: on_progress("predicting", _trained(log), total),
                stop,
            )
            logs = self.folder / "logs" / results.relative_to(self.folder)
            shutil.rmtree(logs, ignore_errors=True)

    def _is_current(self) -> bool:
        if not self.record.is_file():
            return False
        recorded: object = json.loads(self.record.read_text("utf-8"))
        return recorded == self.request()

    def _forget(self) -> None:
        """Delete the results and the log of a job whose inputs have changed."""
        results = self.results()
        if results is not None:
            shutil.rmtree(results)
        self.log.unlink(missing_ok=True)

    def _embed(self) -> list[str]:
        candidate = self.model.candidate
        weights = ["--model", str(candidate.weights)] if candidate.weights else []
        options = json.dumps(dict(candidate.options))
        return [
            *("heareval.embeddings.runner", candidate.module, *weights),
            *("--tasks-dir", str(self.task.path.parent.resolve()), "--task", self.task.name),
            *("--embeddings-dir", "embeddings", "--model-options", options),
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
        """Run a command to its end; call `look` again and again until then."""
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
        """Count the clips whose embeddings are on disk."""
        results = self.results()
        if results is None:
            return 0
        splits = (results / split for split in self.task.splits)
        names = (name for split in splits if split.is_dir() for name in os.listdir(split))  # noqa: PTH208
        return sum(name.endswith(".embedding.npy") for name in names)


def _trained(log: Path) -> int:
    """Count the networks whose training has ended: one a grid point, then one a further fold.

    The log has a line when each begins, so all but the last have ended.
    """
    if not log.is_file():
        return 0
    lines = log.read_text("utf-8", "replace").splitlines()
    begun = sum(" Grid point " in line or "Training split " in line for line in lines)
    return max(0, begun - 1)
