"""`embedder bench startup`: how long the first answer takes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from embedder.children import import_path
from eval.bench.material import clip, encoded
from eval.bench.report import Row, report


def bench_startup(
    rounds: Annotated[int, typer.Option(help="Processes of each kind.", min=1)] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Time fresh processes: an import, and the tags of one file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.wav"
        path.write_bytes(encoded(clip(0), "wav"))
        tag = [sys.executable, "-m", "embedder", "tag", str(path)]
        cache = Path(folder) / "cache"
        _seconds(tag, cache)  # which leaves the converted network there
        kinds = {
            "python -c pass": ([sys.executable, "-c", "pass"], cache),
            "import embedder": ([sys.executable, "-c", "import embedder"], cache),
            "embedder tag one.wav, first on this machine": (tag, None),
            "embedder tag one.wav, later": (tag, cache),
        }
        rows: list[Row] = []
        for kind, (command, kept) in kinds.items():
            found = [_seconds(command, kept) for _ in range(rounds)]
            median = statistics.median(found)
            rows.append({"process": kind, "median s": median, "best s": min(found)})
    typer.echo(report(rows, out))


def _seconds(command: list[str], cache: Path | None) -> float:
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, **import_path(), "XDG_CACHE_HOME": str(cache or empty)}
        started = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started
