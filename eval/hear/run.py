"""Runs jobs side by side, shows their progress, and returns those that failed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embedder.checkpoints import cache_dir
from embedder.cli.report import counted
from embedder.errors import BadRequest, EmbedderError
from embedder.process import available_cores
from eval.hear import tasks
from eval.hear.environment import Kit, create, default_folder, ready
from eval.hear.facts import TASKS
from eval.hear.jobs import Effort, HearJob
from eval.hear.models import Candidate, Described, describe, validate
from eval.hear.plan import write_task
from eval.hear.recipes import RECIPES
from eval.hear.tasks import HearTask

VALIDATED: Final = "validator.log"
GRIDS: Final = ("default", "fast", "faster")


@dataclass(frozen=True, slots=True)
class Setup:
    """The folders of a run, and how much effort it makes; None stands for a default."""

    env: Path | None
    tasks_dir: Path | None
    data: Path | None
    out: Path
    grid: str = "default"
    grid_points: int = 8
    jobs: int | None = None

    def run(
        self, candidates: Sequence[Candidate], names: str, screen: Screen
    ) -> tuple[list[HearJob], list[Failed]]:
        """Run all models on all tasks; returns the jobs, and those that failed.

        Before that the kit is installed, each model is validated, and each task is brought to the
        models' sample rates.
        """
        if self.grid not in GRIDS:
            raise BadRequest(f"no grid {self.grid!r}; choose {', '.join(GRIDS)}")
        folder, cores = self.tasks_dir or default_tasks(), available_cores()
        asked = [name.strip() for name in names.split(",") if name.strip()]
        chosen = [
            find_task(each, folder, self.data, cores, screen)
            for name in asked
            for each in _folders(name)
        ]
        ours, out = kit(self.env, screen), self.out.resolve()
        effort = Effort(self.grid, self.grid_points)
        models = [check(ours, candidate, out, screen) for candidate in candidates]
        for task in chosen:
            for rate in dict.fromkeys(model.sample_rate for model in models):
                bring_to_rate(task, rate, cores, screen)
        jobs = [HearJob(model, task, out, effort) for model in models for task in chosen]
        return jobs, work(ours, jobs, self.jobs or default_jobs(), screen)


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that failed, and the reason."""

    job: HearJob
    reason: str


class Screen:
    """Progress on stderr where that is a terminal, lines otherwise."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(*columns, TimeElapsedColumn(), console=self.console)
        self.progress.disable = not self.console.is_terminal

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        """Print a line above the progress."""
        self.console.print(line)


def kit(folder: Path | None, screen: Screen) -> Kit:
    """The kit in this folder or its default one; it is installed if it is not there."""
    folder = folder or default_folder()
    installed = ready(folder)
    if installed is None:
        screen.say(f"installing the HEAR kit into {folder} (once, about a minute)")
        installed = create(folder)
    return installed


def default_tasks() -> Path:
    """The default folder of tasks."""
    return cache_dir() / "hear" / "tasks"


def find_task(name: str, folder: Path, data: Path | None, workers: int, screen: Screen) -> HearTask:
    """The task `folder / name`, or at the path `name`; a recipe's is built if it is not there."""
    for path in (folder / name, Path(name)):
        if (path / tasks.METADATA).is_file():
            return HearTask.read(path.resolve())
    if name not in RECIPES:
        choices = ", ".join((*RECIPES, *TASKS))
        raise BadRequest(f"no task {name!r} in {folder}; put it there, or choose from {choices}")
    if data is None:
        raise BadRequest(
            f"{name} is not built yet; --data names the folder of the data sets that it is built "
            "from: docs/hear.md"
        )
    plan = RECIPES[name](data)
    line = screen.progress.add_task(f"building {name}", total=len(plan.clips))
    screen.say(f"building {name} from {data}")
    return write_task(plan, folder, workers=workers, advance=lambda: screen.progress.advance(line))


def bring_to_rate(task: HearTask, rate: int, workers: int, screen: Screen) -> None:
    """Resample a task unless it is complete at this rate."""
    missing = len(task.missing(rate))
    if missing:
        screen.say(f"resampling {counted(missing, 'file')} of {task.name} to {rate} Hz")
        line = screen.progress.add_task(f"resampling {task.name}", total=missing)
        tasks.resample(task, rate, workers, lambda: screen.progress.advance(line))


def check(kit: Kit, candidate: Candidate, out: Path, screen: Screen) -> Described:
    """Load a model inside the kit, and validate it unless these weights were validated before."""
    described = describe(kit, candidate)
    record = out / candidate.folder / VALIDATED
    header = f"{described.state_sha256}\n"
    if record.is_file() and record.read_text("utf-8").startswith(header):
        return described
    said = validate(kit, candidate)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(header + said, "utf-8")
    screen.say(f"hearvalidator accepts {candidate.label}")
    return described


def work(kit: Kit, jobs: Sequence[HearJob], at_once: int, screen: Screen) -> list[Failed]:
    """Run the jobs, `at_once` of them at a time, sharing the cores; returns those that failed."""
    stop = Event()
    threads = max(1, available_cores() // at_once)
    overall = screen.progress.add_task("jobs", total=len(jobs))
    failed: list[Failed] = []
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(_run_job, kit, job, threads, screen, stop): job for job in jobs}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, EmbedderError):
                    failed.append(Failed(futures[future], str(error)))
                    screen.say(f"failed: {_title(futures[future])}: {error}")
                elif error is not None:
                    raise error
                screen.progress.advance(overall)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failed


def default_jobs() -> int:
    """One job a core: heareval's networks are too small for more than one thread."""
    return available_cores()


def _run_job(kit: Kit, job: HearJob, threads: int, screen: Screen, stop: Event) -> None:
    title = _title(job)
    if job.scores() is not None:
        screen.say(f"{title}: kept from an earlier run")
        return
    line = screen.progress.add_task(title, total=None)

    def watch(phase: str, done: int, total: int) -> None:
        screen.progress.update(line, description=f"{title}: {phase}", completed=done, total=total)

    try:
        job.run(kit, threads, watch, stop)
    finally:
        screen.progress.remove_task(line)
    took = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in job.seconds().items())
    screen.say(f"{title}: done ({took})")


def _folders(name: str) -> tuple[str, ...]:
    """The folders of a task: several for some of HEAR's 19; other names are folders themselves."""
    return TASKS[name].folders if name in TASKS else (name,)


def _title(job: HearJob) -> str:
    return f"{job.model.candidate.label} on {job.task.name}"
