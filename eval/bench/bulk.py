"""`embedder bench bulk`: `embedder embed` against its network alone, on the same clips, in one run.

The engine, decoding and the whole job are measured in turns, so that other work of the machine
disturbs all of them alike. Cores are shared in three ways, each in a process that keeps its model:

    apart   one thread for the network and one decoder, each with a core
    all     the defaults: the network on every core, and decoders beside it
    one     everything on a single core, where nothing can run at the same time
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from embedder.audio.ahead import default_workers
from embedder.errors import BadRequest
from embedder.process import VARIABLE, available_cores, keep_freed_memory, wait_asleep
from eval.bench.material import FORMATS, RATE, clip, encoded, write_checkpoint
from eval.bench.report import TableRow, report

BATCH: Final = 8  # clips of 10 s that a bulk job takes at once
DISTINCT: Final = 64  # different sounds among the files
VORBIS_BLOCK: Final = 1024  # samples
SHARINGS: Final = ("apart", "all", "one")


@dataclass(frozen=True, slots=True)
class Sharing:
    """How network and decoders share the cores."""

    threads: int
    workers: int
    cores: int  # all of them may use these together


@dataclass(frozen=True, slots=True)
class ClipCost:
    """Seconds for one clip: by the clock, and of processor time."""

    wall: float
    cpu: float


def bench_bulk(
    model: Annotated[str, typer.Option(help="Architecture; weights are random.")] = "mn10_as",
    clips: Annotated[int, typer.Option(help="Files of 10 s in a job.")] = 1024,
    rounds: Annotated[int, typer.Option(help="Medians are over so many.")] = 3,
    kinds: Annotated[str, typer.Option(help="Formats of the files.")] = ",".join(FORMATS),
    share: Annotated[str, typer.Option(help="How the cores are shared.")] = ",".join(SHARINGS),
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure a bulk job against its engine alone, and its work against that of its parts."""
    cores = available_cores()
    sharings = {
        "apart": Sharing(1, 1, cores),
        "all": Sharing(cores, default_workers(), cores),
        "one": Sharing(1, 1, 1),
    }
    rows: list[TableRow] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        checkpoint = write_checkpoint(model, folder)
        files = {kind: write(folder, kind, clips) for kind in _chosen(kinds, FORMATS)}
        for label in _chosen(share, SHARINGS):
            sharing = sharings[label]
            pool = stack.enter_context(process(checkpoint, sharing))
            for kind, paths in files.items():
                turns = [
                    [pool.submit(step, paths, sharing).result() for step in (engine, decode, job)]
                    for _ in range(rounds)
                ]
                rows.append({"cores": label, "files": kind, **_row(turns)})
    typer.echo(report(rows, out, f"{model}, {clips} clips of 10 s, {cores} cores"))


def _chosen(names: str, choices: Collection[str]) -> list[str]:
    chosen = names.split(",")
    for name in chosen:
        if name not in choices:
            raise BadRequest(f"no {name!r}; choose from {', '.join(choices)}")
    return chosen


def _row(turns: Sequence[Sequence[ClipCost]]) -> TableRow:
    """Return medians over rounds. A ratio is computed within each round, then its median taken."""
    engine, decoder, job = zip(*turns, strict=True)
    return {
        "engine clips/s": median(1 / cost.wall for cost in engine),
        "bulk clips/s": median(1 / cost.wall for cost in job),
        "bulk/engine": median(e.wall / j.wall for e, _, j in turns),
        "engine CPU ms": 1000 * median(cost.cpu for cost in engine),
        "decode CPU ms": 1000 * median(cost.cpu for cost in decoder),
        "bulk CPU ms": 1000 * median(cost.cpu for cost in job),
        "parts/bulk CPU": median((e.cpu + d.cpu) / j.cpu for e, d, j in turns),
    }


def write(folder: Path, kind: str, count: int, rate: int = RATE) -> list[str]:
    """Write `count` files of one format; those beyond DISTINCT are further names of the first."""
    paths = [folder / f"{index:05d}.{kind}" for index in range(count)]
    for index, path in enumerate(paths):
        if index < DISTINCT:
            path.write_bytes(encoded(_clip(index, kind, rate), kind, rate))
        else:
            path.hardlink_to(paths[index % DISTINCT])
    return [str(path) for path in paths]


def _clip(index: int, kind: str, rate: int) -> NDArray[np.float32]:
    """Make a clip that is 10 s long when it is decoded.

    A Vorbis file may come out up to one block longer. Beyond 10 s a clip has five windows
    instead of one.
    """
    return clip(index, rate=rate)[: -VORBIS_BLOCK if kind == "ogg" else None]


def process(checkpoint: Path, sharing: Sharing) -> ProcessPoolExecutor:
    """Start a process that keeps the model, for `engine`, `decode` and `job`."""
    context = get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_load, initargs=(checkpoint, sharing))


def _load(checkpoint: Path, sharing: Sharing) -> None:
    """Load the model in the process, as the command line does, and run it twice."""
    global _model
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: sharing.cores])
    os.environ[VARIABLE] = str(sharing.threads)
    wait_asleep()
    keep_freed_memory()
    from embedder.cli.start import load

    _model = load(str(checkpoint), None, "cpu", "auto")
    for _ in range(2):
        _model.scene(np.zeros((BATCH, RATE * 10), np.float32))


_model: Any = None


def engine(paths: Sequence[str], _: Sharing) -> ClipCost:
    """Measure the network on clips in memory, in batches as large as those of a job."""
    from embedder.audio.decode import load_audio

    waves = np.stack([load_audio(path, RATE)[: RATE * 10] for path in paths[:DISTINCT]])
    batches = [waves[first : first + BATCH] for first in range(0, len(waves), BATCH)]
    return _cost(len(waves), lambda: [_model.scene(batch) for batch in batches])


def decode(paths: Sequence[str], _: Sharing) -> ClipCost:
    """Measure decoding, one file after the other."""
    from embedder.audio.decode import load_audio

    return _cost(len(paths), lambda: [load_audio(path, RATE).size for path in paths])


def job(paths: Sequence[str], sharing: Sharing) -> ClipCost:
    """Measure a whole job of a loaded model, the start of its decoders included."""
    from embedder.bulk.job import BulkOptions, embed_files

    with tempfile.TemporaryDirectory() as folder:
        table, options = Path(folder) / "table.parquet", BulkOptions(workers=sharing.workers)
        failed: list[str] = []

        def on_file(path: str, error: str | None) -> None:
            if error is not None:
                failed.append(f"{path}: {error}")

        cost = _cost(len(paths), lambda: embed_files(_model, paths, table, options, on_file))
    if failed:
        raise RuntimeError(failed[0])
    return cost


def _cost(clips: int, work: Callable[[], Any]) -> ClipCost:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    work()
    return ClipCost((time.perf_counter() - wall) / clips, (_cpu_seconds() - cpu) / clips)


def _cpu_seconds() -> float:
    """Return the processor time of this process and of those children that have ended."""
    return sum(os.times()[:4])
