"""`embedder bench engines`: how fast and how exact each engine embeds clips of 10 s in memory.

Every engine is compared with the published procedure (eval.bench.plain). A "way" is an engine's
name, or PLAIN for that procedure.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from torch import Tensor

from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from embedder.process import available_cores, keep_freed_memory
from eval.bench.material import SECONDS, random_model
from eval.bench.memory import peak_megabytes
from eval.bench.plain import PlainEmbedder
from eval.bench.report import TableRow, report
from eval.training.console import say

MODELS: Final = ("mn04_as", "mn10_as", "dymn04_as", "dymn10_as", "fmn10+tf-256_strong")
ENGINES: Final = ("eager", "torch", "openvino", "openvino-bf16")
CARD_ENGINES: Final = ("eager", "torch", "cuda")
PLAIN: Final = "plain"

TURN_SECONDS: Final = 0.3  # a turn of one way lasts so long, and at least one run

Procedure = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured in every way: a model, a job, and how many clips and threads."""

    model: str
    job: str  # "scene" or "timestamps"
    batch: int
    threads: int


def noise(model: AudioEmbedder, batch: int) -> Tensor:
    """Return clips [B, S] of SECONDS, of uniform noise."""
    generator = torch.Generator().manual_seed(0)
    return 0.2 * torch.rand(batch, round(SECONDS * model.sample_rate), generator=generator) - 0.1


def way_of(model: AudioEmbedder, job: str, name: str) -> Procedure:
    """Return a function that does a job in this way: [B, S] -> [B, D] or [B, T, D]."""
    if name == PLAIN:
        plain = PlainEmbedder(model)
        return plain.scene if job == "scene" else plain.timestamps
    model.use(name)
    return model.scene if job == "scene" else lambda wave: model.timestamps(wave).vectors


class Contender:
    """A process that does a case in one way; allocators and threads of others do not disturb it."""

    def __init__(self, case: Case, way: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_contend, args=(other, case, way), daemon=True)
        self._process.start()
        other.close()

    def seconds(self) -> float:
        """Take a turn: after one run that does not count, return the median time of the others."""
        self._pipe.send(True)
        return float(self._pipe.recv())

    def finish(self) -> tuple[Tensor, float]:
        """End the process; return its result and its largest resident memory [MiB]."""
        self._pipe.send(False)
        result, megabytes = self._pipe.recv()
        self._process.join()
        return torch.from_numpy(result), megabytes


def _contend(pipe: Connection, case: Case, way: str) -> None:
    """Take a turn whenever True comes through the pipe; at False, send the result and end."""
    if way != PLAIN:
        keep_freed_memory()  # as all our programs do
    torch.set_num_threads(case.threads)
    model = random_model(case.model)
    if torch.cuda.is_available():
        model.to("cuda")
    wave = noise(model, case.batch).to(model.device)
    work = way_of(model, case.job, way)
    result = work(wave)
    while pipe.recv():
        work(wave)
        pipe.send(statistics.median(_turn(work, wave)))
    pipe.send((result.cpu().numpy(), peak_megabytes()))


def measure(case: Case, engines: Sequence[str], rounds: int) -> list[TableRow]:
    """Measure a case in every way, in turns: times, ratios, errors, memory.

    An error is the norm of the difference to the plain result, relative to that result's norm.
    """
    contenders = {way: Contender(case, way) for way in (PLAIN, *engines)}
    turns: dict[str, list[float]] = {way: [] for way in contenders}
    for _ in range(rounds):
        for way, contender in contenders.items():
            turns[way].append(contender.seconds())
    ends = {way: contender.finish() for way, contender in contenders.items()}
    medians = {way: statistics.median(seconds) for way, seconds in turns.items()}
    exact = ends[PLAIN][0].double()
    return [
        {
            "model": case.model,
            "job": case.job,
            "batch": case.batch,
            "threads": case.threads,
            "way": way,
            "ms a clip": medians[way] / case.batch * 1000,
            "times faster": medians[PLAIN] / medians[way],
            "error": float((result.double() - exact).norm() / exact.norm()),
            "peak MiB": megabytes,
        }
        for way, (result, megabytes) in ends.items()
    ]


def bench(
    model: Annotated[list[str], typer.Option(help="Repeat for several.")] = list(MODELS),  # noqa: B006
    job: Annotated[list[str], typer.Option(help="scene, timestamps.")] = ["scene", "timestamps"],  # noqa: B006
    batch: Annotated[list[int], typer.Option(help="Clips at once.")] = [1, 8, 32],  # noqa: B006
    threads: Annotated[list[int] | None, typer.Option(help="Default: one, and all.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Default: all there are.")] = None,
    rounds: Annotated[int, typer.Option(help="Times that every way runs.", min=1)] = 7,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Time scene and timestamp embeddings on every engine, and the plain procedure beside them."""
    unknown = set(job) - {"scene", "timestamps"}
    if unknown:
        raise BadRequest(f"no job {unknown.pop()!r}; choose scene or timestamps")
    engines = engine or list(CARD_ENGINES if torch.cuda.is_available() else ENGINES)
    rows = []
    for case in _cases(model, job, batch, threads or sorted({1, available_cores()})):
        case_rows = measure(case, engines, rounds)
        for row in case_rows:
            say(
                f"{case.model} {case.job} {case.batch} {case.threads} {row['way']}: "
                f"{row['ms a clip']:.1f} ms, {row['times faster']:.1f}x, {row['error']:.0e}"
            )
        rows += case_rows
    typer.echo(report(rows, out))


def _cases(
    models: Sequence[str], names: Sequence[str], batches: Sequence[int], threads: Sequence[int]
) -> Iterator[Case]:
    for model in models:
        for job in names:
            for batch in batches:
                for count in threads:
                    yield Case(model, job, batch, count)


def _turn(way: Procedure, wave: Tensor) -> list[float]:
    seconds: list[float] = []
    while sum(seconds) < TURN_SECONDS:
        seconds.append(_timed(way, wave))
    return seconds


def _timed(way: Procedure, wave: Tensor) -> float:
    started = time.perf_counter()
    way(wave)
    if wave.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
