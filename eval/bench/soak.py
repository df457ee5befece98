"""`embedder bench soak`: an hour of mixed requests, and whether memory and handles stay level."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Annotated, Any, Final

import typer

from embedder.defaults import DEFAULT_MODEL
from eval.bench.launch import Launch, server
from eval.bench.material import write_checkpoint
from eval.bench.mixed import Load
from eval.bench.report import Row, report
from eval.bench.watch import Sample

SECOND_MODEL: Final = "fmn04_strong"  # it finds events, too
END_MIB: Final = 1200e6 / (1 << 20)  # 1.2 GB
GROWTH: Final = 0.03  # over the second half, as a share of the mean
MORE_HANDLES: Final = 4  # threads or descriptors, over the second half
ROWS: Final = 10
_START_SHARE: Final = 0.5  # until here everything is used for the first time


@dataclass(frozen=True, slots=True)
class Moment:
    """A sample of the server, when it was taken [s], and how many answers had come."""

    seconds: float
    sample: Sample
    answers: int


def soak(
    minutes: Annotated[float, typer.Option(help="How long; the show is 60.")] = 60.0,
    clients: Annotated[int, typer.Option(help="Each waits for its answer.", min=1)] = 4,
    every: Annotated[float, typer.Option(help="Seconds from sample to sample.")] = 5.0,
    tree: Annotated[
        Path | None, typer.Option(help="Source tree to serve from; default: this installation.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the requests.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "--json", help="JSON file to write.")] = None,
) -> None:
    """Load a server of two models for long; exit code 1 if it does not stay level."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        second = write_checkpoint(SECOND_MODEL, folder)
        launch = Launch({"MODELS": str(second)}, tree and tree.resolve(), folder / "cache")
        with server(launch) as running:
            load = Load(running.port, (DEFAULT_MODEL, second.stem), second.stem, seed)
            moments = _loaded(load, running.process, clients, 60 * minutes, every)
            status = running.stop()
    typer.echo(report(_table(moments), out, f"{minutes:g} minutes of mixed requests"))
    answers = ", ".join(f"{count}× {name}" for name, count in load.counts.most_common())
    typer.echo(f"\nanswers: {answers}\n")
    checks = judged(moments, load.counts, status)
    typer.echo(report(checks, out and out.with_stem(f"{out.stem}-checks"), "Bounds"))
    if not all(check["kept"] == "yes" for check in checks):
        raise typer.Exit(1)


def _loaded(load: Load, process: Any, clients: int, seconds: float, every: float) -> list[Moment]:
    """Samples while the load runs, and one after it."""
    moments: list[Moment] = []
    ended = threading.Event()

    started = time.monotonic()

    def sample() -> None:
        while not ended.wait(every if moments else 0):
            elapsed = time.monotonic() - started
            moments.append(Moment(elapsed, Sample.of(process), load.counts.total()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        asyncio.run(load.run(clients, seconds))
    finally:
        ended.set()
        sampler.join()
    return moments


def _table(moments: Sequence[Moment]) -> list[Row]:
    """Rows at equal distances, the first and the last moment among them."""
    count = min(ROWS, len(moments))
    last = len(moments) - 1
    chosen = [moments[round(row * last / max(1, count - 1))] for row in range(count)]
    return [
        {
            "minutes": moment.seconds / 60,
            "answers": moment.answers,
            "server MiB": moment.sample.server_mib,
            "decoders MiB": moment.sample.children_mib,
            "descriptors": moment.sample.descriptors,
            "threads": moment.sample.threads,
            "children": moment.sample.children,
        }
        for moment in chosen
    ]


def judged(moments: Sequence[Moment], counts: dict[str, int], status: int) -> list[Row]:
    """Every bound, what was measured, and whether it was kept."""
    half = [moment for moment in moments if moment.seconds >= _START_SHARE * moments[-1].seconds]
    times = [moment.seconds for moment in half]
    memory = [moment.sample.mib for moment in half]
    growth = _rise(times, memory) / fmean(memory)
    threads = _rise(times, [moment.sample.threads for moment in half])
    descriptors = _rise(times, [moment.sample.descriptors for moment in half])
    bad = sum(count for name, count in counts.items() if not _may_be(name))
    rows = [
        ("memory at the end", f"at most {END_MIB:.0f} MiB", f"{memory[-1]:.0f} MiB",
         memory[-1] <= END_MIB),
        ("memory, rise in the second half", f"below {GROWTH:.0%}", f"{growth:+.1%}",
         growth < GROWTH),
        ("threads, rise in the second half", f"below {MORE_HANDLES}", f"{threads:+.1f}",
         threads < MORE_HANDLES),
        ("descriptors, rise in the second half", f"below {MORE_HANDLES}", f"{descriptors:+.1f}",
         descriptors < MORE_HANDLES),
        ("answers that should not be", "0", str(bad), bad == 0),
        ("exit status after SIGTERM", "0", str(status), status == 0),
    ]  # fmt: skip
    return [
        {"what": what, "bound": bound, "measured": measured, "kept": "yes" if kept else "NO"}
        for what, bound, measured, kept in rows
    ]


def _rise(times: Sequence[float], values: Sequence[float]) -> float:
    """By how much a straight line through the values rises from the first time to the last."""
    if len(times) < 2:
        return 0.0
    return linear_regression(times, values).slope * (times[-1] - times[0])


def _may_be(name: str) -> bool:
    """Whether an answer is right: a success, a client's error, or busy; and whole."""
    return name == "given up" or (name.isdecimal() and (name < "500" or name == "503"))
