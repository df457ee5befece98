"""`embedder bench engines`: embeddings of 10 s in memory on every engine, beside the plain way."""

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
from eval.bench.report import Row, report
from eval.training.console import say

MODELS: Final = ("mn04_as", "mn10_as", "dymn04_as", "dymn10_as", "fmn10+tf-256_strong")
ENGINES: Final = ("eager", "torch", "openvino", "openvino-bf16")
CARD_ENGINES: Final = ("eager", "torch", "cuda")
PLAIN: Final = "plain"

TURN_SECONDS: Final = 0.3  # in which a way runs, at least once, before it is the next one's turn

Job = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One line's worth of work."""

    model: str
    job: str  # "scene" or "timestamps"
    batch: int
    threads: int


def noise(model: AudioEmbedder, batch: int) -> Tensor:
    """Clips [B, S] of SECONDS."""
    generator = torch.Generator().manual_seed(0)
    return 0.2 * torch.rand(batch, round(SECONDS * model.sample_rate), generator=generator) - 0.1


def way_of(model: AudioEmbedder, job: str, name: str) -> Job:
    """One way to do one job."""
    if name == PLAIN:
        plain = PlainEmbedder(model)
        return plain.scene if job == "scene" else plain.timestamps
    model.use(name)
    return model.scene if job == "scene" else lambda wave: model.timestamps(wave).vectors


class Contender:
    """One way in a process of its own: its allocator and its threads disturb nobody."""

    def __init__(self, case: Case, way: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_contend, args=(other, case, way), daemon=True)
        self._process.start()
        other.close()

    def seconds(self) -> float:
        """Of one run: the median of a turn, after a run that does not count."""
        self._pipe.send(True)
        return float(self._pipe.recv())

    def finish(self) -> tuple[Tensor, float]:
        """The result, and MiB of memory that the process held at most."""
        self._pipe.send(False)
        result, megabytes = self._pipe.recv()
        self._process.join()
        return torch.from_numpy(result), megabytes


def _contend(pipe: Connection, case: Case, way: str) -> None:
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


def measure(case: Case, engines: Sequence[str], rounds: int) -> list[Row]:
    """Every way in turn, again and again: medians in ms a clip, ratios, errors, memory."""
    contenders = {way: Contender(case, way) for way in (PLAIN, *engines)}
    found: dict[str, list[float]] = {way: [] for way in contenders}
    for _ in range(rounds):
        for way, contender in contenders.items():
            found[way].append(contender.seconds())
    ends = {way: contender.finish() for way, contender in contenders.items()}
    medians = {way: statistics.median(seconds) for way, seconds in found.items()}
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
        found = measure(case, engines, rounds)
        for row in found:
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


def _turn(way: Job, wave: Tensor) -> list[float]:
    seconds: list[float] = []
    while sum(seconds) < TURN_SECONDS:
        seconds.append(_timed(way, wave))
    return seconds


def _timed(way: Job, wave: Tensor) -> float:
    started = time.perf_counter()
    way(wave)
    if wave.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
