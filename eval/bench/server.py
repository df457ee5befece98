"""`bench-server`: a real server and real clients, against decoding and network alone, in one run.

All take turns, so that whatever else the machine does meets all. The clients' process shares the
cores with the server; what it costs is told.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import httpx
import typer

from embedder.errors import BadRequest
from embedder.threads import available_cores
from eval.bench import bulk
from eval.bench.bulk import Cost, Sharing
from eval.bench.load import Answers, Load, send
from eval.bench.material import SECONDS, write_checkpoint
from eval.bench.report import Row, report

HIT_SECONDS: Final = 1.6  # 100 KB
CONNECTIONS: Final = 16
START_SECONDS: Final = 120.0


def bench_server(
    model: Annotated[str, typer.Option(help="Architecture; weights are random.")] = "mn10_as",
    requests: Annotated[int, typer.Option(help="Of 10 s, in a round.")] = 400,
    rounds: Annotated[int, typer.Option(help="Medians are over so many.")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure a server at saturation and alone, and its cache."""
    cores = available_cores()
    sharing = Sharing(cores, 0, cores)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = write_checkpoint(model, Path(name))
        files = bulk.write(Path(name), "wav", bulk.DISTINCT)
        context = get_context("spawn")
        with (
            _server(checkpoint) as (port, server),
            bulk.process(checkpoint, sharing) as alone,
            ProcessPoolExecutor(1, context) as clients,
        ):
            full = Load(port, SECONDS, CONNECTIONS, requests)
            lone = Load(port, SECONDS, 1, requests // 4)
            hits = Load(port, HIT_SECONDS, 1, 10 * requests, alike=True)
            many_hits = Load(port, HIT_SECONDS, CONNECTIONS, 10 * requests, alike=True)
            turns = []
            for _ in range(rounds):
                engine, decoder = (
                    alone.submit(step, files, sharing).result()
                    for step in (bulk.engine, bulk.decode)
                )
                answers = [
                    _measured(server, clients, load) for load in (full, lone, hits, many_hits)
                ]
                turns.append((engine, decoder, answers))
    loads = zip(*(answers for _, _, answers in turns), strict=True)
    names = ("10 s, 16 clients", "10 s, one client", "hit, one client", "hit, 16 clients")
    rows = [_row(name, load) for name, load in zip(names, loads, strict=True)]
    title = f"{model}, {cores} cores"
    typer.echo(report(rows, out, title))
    parts = [_parts(engine, decoder, answers[0], cores) for engine, decoder, answers in turns]
    sums = {key: median(part[key] for part in parts) for key in parts[0]}
    typer.echo()
    typer.echo(report([sums], _beside(out), f"{title}: the server at saturation and its parts"))


def _row(name: str, rounds: tuple[tuple[Answers, float], ...]) -> Row:
    """Medians over rounds."""
    row: Row = {
        "load": name,
        "requests/s": median(len(found.latencies) / found.wall for found, _ in rounds),
    }
    for percent in (50, 90, 99):
        row[f"p{percent} ms"] = 1000 * median(found.percentile(percent) for found, _ in rounds)
    row["server CPU ms"] = 1000 * median(cpu / len(found.latencies) for found, cpu in rounds)
    row["client CPU ms"] = 1000 * median(found.cpu / len(found.latencies) for found, _ in rounds)
    return row


def _parts(engine: Cost, decoder: Cost, measured: tuple[Answers, float], cores: int) -> Row:
    """A clip's cost in the server, and alone; decoding alone would use all cores."""
    found, cpu = measured
    count = len(found.latencies)
    wall, client = found.wall / count, found.cpu / count
    parts = engine.wall + decoder.wall / cores
    return {
        "network/s": 1 / engine.wall,
        "decode/s": cores / decoder.wall,
        "parts/s": 1 / parts,
        "server/s": 1 / wall,
        "server/parts": parts / wall,
        "with clients": (parts + client / cores) / wall,
        "parts CPU ms": 1000 * (engine.cpu + decoder.cpu),
        "server CPU ms": 1000 * cpu / count,
        "CPU ratio": (engine.cpu + decoder.cpu) * count / cpu,
    }


def _measured(server: Any, clients: ProcessPoolExecutor, load: Load) -> tuple[Answers, float]:
    """What clients saw, and the seconds of processors that the server took."""
    before = _cpu_seconds(server)
    answers = clients.submit(send, load).result()
    return answers, _cpu_seconds(server) - before


def _cpu_seconds(server: Any) -> float:
    """Of a process and its children, those that have ended too."""
    family = (server, *server.children(recursive=True))
    return float(sum(sum(process.cpu_times()[:4]) for process in family))


@contextmanager
def _server(checkpoint: Path) -> Iterator[tuple[int, Any]]:
    """A server with its defaults, ready: its port and its process."""
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError as error:
        raise BadRequest("bench-server needs psutil; pip install psutil") from error
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"PORT": str(port), "MODEL": str(checkpoint), "DEVICE": "cpu"}
    environment = os.environ | {f"EMBEDDER_{name}": value for name, value in settings.items()}
    process = subprocess.Popen([sys.executable, "-m", "service"], env=environment)
    try:
        _await_ready(port, process)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _await_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the server did not get ready")


def _beside(out: Path | None) -> Path | None:
    return None if out is None else out.with_stem(f"{out.stem}-parts")
