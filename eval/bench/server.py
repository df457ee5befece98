"""`embedder bench server`: a real server and real clients, against decoding and network alone.

All take short turns, so that whatever else the machine does meets all; ratios are of one round
each. Decoders alone use every core, as the network alone does. The clients' process shares the
cores with the server; what it costs is told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Final

import typer

from embedder.errors import BadRequest
from embedder.extras import require
from embedder.process import available_cores, keep_freed_memory
from eval.bench import bulk
from eval.bench.bulk import Cost, Sharing
from eval.bench.launch import Launch, server
from eval.bench.load import Answers, Load, send
from eval.bench.material import RATE, SECONDS, write_checkpoint
from eval.bench.report import Row, report

HIT_SECONDS: Final = 1.6  # 100 KB
CONNECTIONS: Final = 16


@dataclass(frozen=True, slots=True)
class Turn:
    """What one round found at one sample rate."""

    engine: Cost
    decoder: Cost
    measured: tuple[Answers, float]  # what clients saw, and the server's CPU seconds an answer


def bench_server(
    model: Annotated[str, typer.Option(help="Architecture; weights are random.")] = "mn10_as",
    rate: Annotated[list[int], typer.Option(help="Of the WAVs, in Hz.")] = [44_100, RATE],  # noqa: B006
    requests: Annotated[int, typer.Option(help="Of 10 s, in a round.")] = 160,
    rounds: Annotated[int, typer.Option(help="Medians are over so many.")] = 12,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure a server at saturation and alone, and its cache."""
    require("psutil")
    if requests <= 2 * CONNECTIONS:
        raise BadRequest(f"{requests} requests; send more than {2 * CONNECTIONS} in a round")
    cores = available_cores()
    saturated: dict[int, list[Turn]] = {hertz: [] for hertz in rate}
    with tempfile.TemporaryDirectory() as name, _bench(model, cores, Path(name)) as bench:
        files = {hertz: _files(Path(name, str(hertz)), hertz) for hertz in saturated}
        port = bench.port
        others = {
            "10 s, one client": Load(port, SECONDS, 1, requests // 4),
            "hit, one client": Load(port, HIT_SECONDS, 1, 10 * requests, alike=True),
            f"hit, {CONNECTIONS} clients": Load(
                port, HIT_SECONDS, CONNECTIONS, 10 * requests, alike=True
            ),
        }
        found: dict[str, list[tuple[Answers, float]]] = {name: [] for name in others}
        for hertz in saturated:
            bench.turn(files[hertz], hertz, 4 * CONNECTIONS)  # kernels are made, files are read
        for _ in range(rounds):
            for hertz, turns in saturated.items():
                turns.append(bench.turn(files[hertz], hertz, requests))
            for load_name, load in others.items():
                found[load_name].append(bench.measured(load))
    rows = [
        *(
            _row(f"10 s at {hertz} Hz, {CONNECTIONS} clients", [turn.measured for turn in turns])
            for hertz, turns in saturated.items()
        ),
        *(_row(load_name, answers) for load_name, answers in found.items()),
    ]
    title = f"{model}, {cores} cores"
    typer.echo(report(rows, out, title))
    parts = [_parts(hertz, turns, cores) for hertz, turns in saturated.items()]
    typer.echo()
    typer.echo(report(parts, _beside(out), f"{title}: the server at saturation and its parts"))


@dataclass(frozen=True, slots=True)
class _Bench:
    """A server, its clients, and what it is made of, each in processes of its own."""

    port: int
    server: Any
    sharing: Sharing
    network: ProcessPoolExecutor
    decoders: Sequence[ProcessPoolExecutor]
    clients: ProcessPoolExecutor

    def turn(self, files: Sequence[str], rate: int, requests: int) -> Turn:
        """The network alone, the decoders alone, and the server."""
        engine = self.network.submit(bulk.engine, files, self.sharing).result()
        decoding = [one.submit(bulk.decode, files, self.sharing) for one in self.decoders]
        costs = [one.result() for one in decoding]
        decoder = Cost(fmean(cost.wall for cost in costs), fmean(cost.cpu for cost in costs))
        load = Load(self.port, SECONDS, CONNECTIONS, requests, rate=rate)
        return Turn(engine, decoder, self.measured(load))

    def measured(self, load: Load) -> tuple[Answers, float]:
        """What clients saw, and the seconds of processors that the server took for an answer."""
        before = _cpu_seconds(self.server)
        answers = self.clients.submit(send, load).result()
        return answers, (_cpu_seconds(self.server) - before) / load.requests


@contextmanager
def _bench(model: str, cores: int, folder: Path) -> Iterator[_Bench]:
    """All processes; they end with the context, also if not all of them start."""
    checkpoint = write_checkpoint(model, folder)
    sharing = Sharing(cores, 0, cores)
    context = get_context("spawn")
    with ExitStack() as stack:
        enter = stack.enter_context
        running = enter(server(Launch({"MODEL": str(checkpoint)})))
        network = enter(bulk.process(checkpoint, sharing))
        decoders = [enter(ProcessPoolExecutor(1, context, keep_freed_memory)) for _ in range(cores)]
        clients = enter(ProcessPoolExecutor(1, context))
        yield _Bench(running.port, running.process, sharing, network, decoders, clients)


def _files(folder: Path, rate: int) -> list[str]:
    folder.mkdir()
    return bulk.write(folder, "wav", bulk.DISTINCT, rate)


def _row(name: str, rounds: Sequence[tuple[Answers, float]]) -> Row:
    """Medians over rounds."""
    row: Row = {"load": name, "requests/s": median(1 / found.pace for found, _ in rounds)}
    for percent in (50, 90, 99):
        row[f"p{percent} ms"] = 1000 * median(found.percentile(percent) for found, _ in rounds)
    row["server CPU ms"] = 1000 * median(cpu for _, cpu in rounds)
    row["client CPU ms"] = 1000 * median(found.cpu_each for found, _ in rounds)
    return row


def _parts(hertz: int, turns: Sequence[Turn], cores: int) -> Row:
    """Medians over rounds of what the parts and the server do; ratios are of one round each."""
    rounds = [_ratios(turn, cores) for turn in turns]
    return {"Hz": hertz} | {key: median(row[key] for row in rounds) for key in rounds[0]}


def _ratios(turn: Turn, cores: int) -> dict[str, float]:
    engine, decoder = turn.engine, turn.decoder
    answers, cpu = turn.measured
    pace = answers.pace
    parts = engine.wall + decoder.wall / cores
    return {
        "network/s": 1 / engine.wall,
        "decode/s": cores / decoder.wall,
        "parts/s": 1 / parts,
        "server/s": 1 / pace,
        "server/parts": parts / pace,
        "with clients": (parts + answers.cpu_each / cores) / pace,
        "parts CPU ms": 1000 * (engine.cpu + decoder.cpu),
        "server CPU ms": 1000 * cpu,
        "CPU ratio": (engine.cpu + decoder.cpu) / cpu,
    }


def _cpu_seconds(server: Any) -> float:
    """Of a process and its children, those that have ended too."""
    family = (server, *server.children(recursive=True))
    return float(sum(sum(process.cpu_times()[:4]) for process in family))


def _beside(out: Path | None) -> Path | None:
    return None if out is None else out.with_stem(f"{out.stem}-parts")
