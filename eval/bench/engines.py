"""`python -m eval bench`: embeddings of 10 s in memory on every engine, beside the plain way."""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from torch import Tensor, nn

from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from embedder.threads import available_cores
from eval.bench.machine import report
from eval.bench.memory import peak_megabytes
from eval.bench.plain import PlainEmbedder
from eval.console import say

MODELS: Final = ("mn04_as", "mn10_as", "dymn04_as", "dymn10_as", "fmn10+tf-256_strong")
ENGINES: Final = ("eager", "torch", "openvino", "openvino-bf16")
CARD_ENGINES: Final = ("eager", "torch", "cuda")
SECONDS: Final = 10
PLAIN: Final = "plain"

Job = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One line's worth of work."""

    model: str
    job: str  # "scene" or "timestamps"
    batch: int
    threads: int


def random_model(name: str) -> AudioEmbedder:
    """Random weights, and BatchNorms that do something: as slow as trained ones, and as exact."""
    torch.manual_seed(0)
    model = AudioEmbedder.build(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model


def noise(model: AudioEmbedder, batch: int) -> Tensor:
    """Clips of 10 s."""
    generator = torch.Generator().manual_seed(0)
    return 0.2 * torch.rand(batch, SECONDS * model.sample_rate, generator=generator) - 0.1


def jobs(model: AudioEmbedder, job: str, engines: Sequence[str]) -> dict[str, Job]:
    """Each way to do one job; the plain one first."""
    plain = PlainEmbedder(model)
    ways: dict[str, Job] = {PLAIN: plain.scene if job == "scene" else plain.timestamps}
    for engine in engines:
        ways[engine] = _way(model, job, engine)
    return ways


def measure(case: Case, engines: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Every way in turn, again and again: medians in ms a clip, their ratios, their errors."""
    torch.set_num_threads(case.threads)
    model = random_model(case.model)
    if torch.cuda.is_available():
        model.to("cuda")
    wave = noise(model, case.batch).to(model.device)
    ways = jobs(model, case.job, engines)
    results = {name: way(wave) for name, way in ways.items()}  # which also warms up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(_timed(way, wave))
    exact = results[PLAIN].double()
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return [
        {
            "model": case.model,
            "job": case.job,
            "batch": case.batch,
            "threads": case.threads,
            "way": name,
            "ms a clip": median / case.batch * 1000,
            "times faster": medians[PLAIN] / median,
            "error": float((results[name].double() - exact).norm() / exact.norm()),
        }
        for name, median in medians.items()
    ]


def peak_of(case: Case, way: str) -> float:
    """MiB that a fresh process holds at most while it does one job."""
    command = [sys.executable, "-m", "eval.bench.engines"]
    arguments = [case.model, case.job, str(case.batch), way]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout)


def bench(
    model: Annotated[list[str], typer.Option(help="Repeat for several.")] = list(MODELS),  # noqa: B006
    job: Annotated[list[str], typer.Option(help="scene, timestamps.")] = ["scene", "timestamps"],  # noqa: B006
    batch: Annotated[list[int], typer.Option(help="Clips at once.")] = [1, 8, 32],  # noqa: B006
    threads: Annotated[list[int] | None, typer.Option(help="Default: one, and all.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Default: all there are.")] = None,
    rounds: Annotated[int, typer.Option(help="Times that every way runs.", min=1)] = 7,
    memory: Annotated[bool, typer.Option(help="Peak memory of each, in processes.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Time scene and timestamp embeddings on every engine, and the plain procedure beside them."""
    unknown = set(job) - {"scene", "timestamps"}
    if unknown:
        raise BadRequest(f"no job {unknown.pop()!r}; choose scene or timestamps")
    engines = engine or list(CARD_ENGINES if torch.cuda.is_available() else ENGINES)
    rows = []
    for case in _cases(model, job, batch, threads or sorted({1, available_cores()})):
        found = measure(case, engines, rounds)
        for row in found:
            if memory:
                row["peak MiB"] = peak_of(case, row["way"])
            say(
                f"{case.model} {case.job} {case.batch} {case.threads} {row['way']}: "
                f"{row['ms a clip']:.1f} ms, {row['times faster']:.1f}x, {row['error']:.0e}"
            )
        rows += found
    typer.echo(report(rows, out))


def _cases(
    models: Sequence[str], names: Sequence[str], batches: Sequence[int], threads: Sequence[int]
) -> Iterator[Case]:
    for model in models:
        for job in names:
            for batch in batches:
                for count in threads:
                    yield Case(model, job, batch, count)


def _way(model: AudioEmbedder, job: str, engine: str) -> Job:
    own = copy.deepcopy(model)
    own.use(engine)
    return own.scene if job == "scene" else lambda wave: own.timestamps(wave).vectors


def _timed(way: Job, wave: Tensor) -> float:
    started = time.perf_counter()
    way(wave)
    if wave.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _do_once(name: str, job: str, batch: str, way: str) -> None:
    torch.set_num_threads(1)
    model = random_model(name)
    jobs(model, job, [] if way == PLAIN else [way])[way](noise(model, int(batch)))
    print(peak_megabytes())  # noqa: T201


if __name__ == "__main__":
    _do_once(*sys.argv[1:])
