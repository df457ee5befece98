"""The commands `embedder hear ...`: options in, task folders and tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from embedder.cli.report import counted
from embedder.defaults import DEFAULT_MODEL
from embedder.errors import BadRequest
from embedder.extras import require
from embedder.zoo import MODELS

if TYPE_CHECKING:
    from eval.hear.report import ScoreReport
    from eval.hear.run import Screen

SOME_FAILED: Final = 1

# The paper's Table II: single feature sets, then the best of them with each other one.
_MB: Final = ("b5", "b11", "b13", "b15")
_MSE: Final = ("se5", "se11", "se13", "se15")
FEATURE_SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "L": ("mel",),
    "M_B": _MB,
    "M_SE": _MSE,
    "H_Clf1": ("clf1",),
    "H_Clf2": ("clf2",),
    "H_Clf3": ("logits",),
    "M_B + L": ("mel", *_MB),
    "M_B + M_SE": (*_MB, *_MSE),
    "M_B + H_Clf1": (*_MB, "clf1"),
    "M_B + H_Clf2": (*_MB, "clf2"),
    "M_B + H_Clf3": (*_MB, "logits"),
    "M_B + M_SE + L": ("mel", *_MB, *_MSE),
}

Names = Annotated[
    str, typer.Option("--tasks", help="Names or folders of tasks, with commas; recipes are built.")
]
TasksDir = Annotated[
    Path | None, typer.Option(help="Folder of HEAR tasks; default: in the user's cache.")
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of esc10/ and fsdd/, which recipes build from."),
]
Out = Annotated[Path, typer.Option(help="Folder for results; a second run continues there.")]
EnvDir = Annotated[
    Path | None,
    typer.Option(
        "--env",
        envvar="EMBEDDER_HEAR_ENV",
        help="Environment of the kit, made on first use; default: in the user's cache.",
    ),
]
Grid = Annotated[str, typer.Option(help="heareval's search: default, fast or faster.")]
Points = Annotated[int, typer.Option(min=1, help="How many points of it.")]
AtOnce = Annotated[int | None, typer.Option("--jobs", min=1, help="Jobs at once.")]
Options = Annotated[
    str, typer.Option("--model-options", help="JSON for load_model of every model.")
]
OneModel = Annotated[str, typer.Option("--model", help="As for `embedder hear run`.")]
Plots = Annotated[
    bool, typer.Option("--plots/--no-plots", help="Draw the paper's figures; needs matplotlib.")
]


def hear(
    tasks: Names = "esc10",
    model: Annotated[
        list[str],
        typer.Option(help="mn04_as, a .safetensors, NAME=WEIGHTS or module:hearbaseline; repeat."),
    ] = [DEFAULT_MODEL],  # noqa: B006
    model_options: Options = "{}",
    out: Out = Path("runs/hear"),
    tasks_dir: TasksDir = None,
    data: DataDir = None,
    env: EnvDir = None,
    grid: Grid = "default",
    grid_points: Points = 8,
    jobs: AtOnce = None,
    plots: Plots = False,
) -> None:
    """Score models by the official HEAR kit; one table.

    The kit validates each model, embeds each task and trains its predictors.
    """
    if plots:
        require("matplotlib")
    from eval.hear.models import candidate, parse_options
    from eval.hear.run import Setup

    options = parse_options(model_options)
    candidates = [candidate(text, options) for text in model]
    setup = Setup(env, tasks_dir, data, out, grid, grid_points, jobs)
    _table(setup, candidates, tasks, "hear", "HEAR scores", plots)


def features(
    tasks: Names = "esc10,digits",
    model: OneModel = DEFAULT_MODEL,
    out: Out = Path("runs/hear"),
    tasks_dir: TasksDir = None,
    data: DataDir = None,
    env: EnvDir = None,
    grid: Grid = "default",
    grid_points: Points = 8,
    jobs: AtOnce = None,
    sets: Annotated[
        str, typer.Option(help="Some of the sets, with commas; default: all of Table II.")
    ] = "",
) -> None:
    """Compare the features of one model, as the paper's Table II does."""
    from dataclasses import replace

    from eval.hear.models import candidate
    from eval.hear.run import Setup

    names = [name.strip() for name in sets.split(",") if name.strip()] or list(FEATURE_SETS)
    unknown = [name for name in names if name not in FEATURE_SETS]
    if unknown:
        raise BadRequest(f"no feature set {unknown[0]!r}; choose from {', '.join(FEATURE_SETS)}")
    candidates = [
        replace(candidate(model, {"taps": list(FEATURE_SETS[name])}), label=name) for name in names
    ]
    setup = Setup(env, tasks_dir, data, out, grid, grid_points, jobs)
    _table(setup, candidates, tasks, "features", f"Feature sets of {model}", plots=False)


def models(
    tasks: Names = "esc10,digits",
    out: Out = Path("runs/hear"),
    tasks_dir: TasksDir = None,
    data: DataDir = None,
    env: EnvDir = None,
    grid: Grid = "default",
    grid_points: Points = 8,
    jobs: AtOnce = None,
    plots: Plots = True,
) -> None:
    """Compare all models whose weights are here, as the paper's Fig. 2 does."""
    if plots:
        require("matplotlib")
    from embedder import checkpoints
    from eval.hear.models import candidate
    from eval.hear.run import Setup

    here = [name for name, spec in MODELS.items() if checkpoints.find(spec)]
    if not here:
        raise BadRequest("no weights are here; `embedder fetch NAME...` downloads some")
    setup = Setup(env, tasks_dir, data, out, grid, grid_points, jobs)
    _table(setup, [candidate(name) for name in here], tasks, "models", "Models", plots)


def build(
    source: Annotated[Path, typer.Argument(help="Folder of class folders, or a CSV.")],
    name: Annotated[str, typer.Option(help="Of the task.")],
    tasks_dir: TasksDir = None,
    seconds: Annotated[
        float | None, typer.Option(help="Pad or trim every clip to this; default: as they are.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds for class folders without splits.")] = 5,
    separator: Annotated[str, typer.Option(help="Between labels in one cell of a CSV.")] = ";",
    rate: Annotated[int, typer.Option(help="Sample rate to write, in Hz.")] = 48_000,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode.")] = 2,
) -> None:
    """Make a HEAR task of your own data: class folders, or audio and a CSV."""
    from eval.hear import sources
    from eval.hear.plan import write_task
    from eval.hear.run import Screen, default_tasks

    folder = source.is_dir()
    clips = sources.class_folders(source, folds) if folder else sources.table(source, separator)
    plan = sources.plan(name, clips, seconds)
    with Screen() as screen:
        line = screen.progress.add_task(f"building {name}", total=len(clips))
        task = write_task(
            plan,
            tasks_dir or default_tasks(),
            rate,
            workers,
            lambda: screen.progress.advance(line),
        )
    kind = f"{plan.kind}, {plan.prediction}"
    typer.echo(f"{task.path}: {len(clips)} clips, {len(plan.splits)} splits, {kind}")


def resample(
    tasks: Annotated[list[Path], typer.Argument(help="HearTask folders.")],
    rate: Annotated[int, typer.Option(help="Of the model, in Hz.")] = 32_000,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
) -> None:
    """Bring HEAR tasks to a model's sample rate, from the highest rate they have."""
    from eval.hear.run import Screen, bring_to_rate
    from eval.hear.tasks import HearTask

    with Screen() as screen:
        for path in tasks:
            task = HearTask.read(path)
            bring_to_rate(task, rate, workers, screen)
            files = sum(len(task.files(split)) for split in task.splits)
            screen.say(f"{path} has its {counted(files, 'file')} at {rate} Hz")


def listing() -> None:
    """List the 19 tasks of HEAR, the recipes, and the challenge's best scores."""
    from rich.console import Console
    from rich.table import Table

    from eval.hear import facts
    from eval.hear.recipes import RECIPES

    table = Table("task", "group", "metric", "best in 2021", "folder", box=None)
    for name, task in facts.TASKS.items():
        folders = " ".join(task.folders)
        table.add_row(name, task.group, task.metric, f"{facts.best(name):.3f}", folders)
    for name, recipe in RECIPES.items():
        table.add_row(name, "own", "", "", (recipe.__doc__ or "").splitlines()[0])
    Console().print(table)


def _table(
    setup: Any, candidates: Sequence[Any], tasks: str, name: str, heading: str, plots: bool
) -> None:
    """Run all jobs, then show their results and save them."""
    from eval.hear import report as reports
    from eval.hear.run import Screen

    with Screen() as screen:
        jobs, failed = setup.run(candidates, tasks, screen)
    report = reports.build(jobs)
    paths = [*reports.save(report, setup.out, name, heading)]
    if plots:
        from eval.hear.plots import draw

        paths += draw(report, setup.out, name)
    _say(screen, report, paths, heading)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _say(screen: Screen, report: ScoreReport, paths: Sequence[Path], heading: str) -> None:
    typer.echo(report.markdown(heading))
    for path in paths:
        screen.say(f"wrote {path}")
