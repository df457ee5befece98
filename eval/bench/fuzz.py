"""`embedder bench fuzz`: mutated files, over the library, a server, and as checkpoints."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from embedder.errors import BadRequest
from embedder.process import available_cores
from eval.bench import roads
from eval.bench.crashes import Ending, Maker, endings
from eval.bench.launch import Launch, server
from eval.bench.material import FORMATS, clip, encoded, random_model, write_checkpoint
from eval.bench.report import report
from eval.bench.tally import Tally

SECONDS: Final = {"library": 30.0, "http": 90.0, "checkpoints": 60.0}  # of one case
DETECTOR: Final = "fmn04_strong"
_PROBED_TAP, _PROBED_SIZE = "mel", 128
_NO_SOUND: Final = (".json", ".md", ".txt", ".csv")


def fuzz(
    seeds: Annotated[
        list[Path], typer.Option(help="Folder of sound files; default: a few made here.")
    ] = [],  # noqa: B006
    files: Annotated[int, typer.Option(help="Mutated files that the library decodes.")] = 10_000,
    requests: Annotated[int, typer.Option(help="Mutated requests to a server.")] = 1_000,
    checkpoints: Annotated[int, typer.Option(help="Mutated checkpoints and probes.")] = 500,
    seed: Annotated[int, typer.Option(help="Number of the first case.")] = 0,
    processes: Annotated[int | None, typer.Option(help="Default: the cores.", min=1)] = None,
    tree: Annotated[
        Path | None, typer.Option(help="Source tree of the server; default: this installation.")
    ] = None,
    keep: Annotated[Path, typer.Option(help="Folder for the files that ended badly.")] = Path(
        "fuzz-findings"
    ),
    out: Annotated[Path | None, typer.Option("--out", "--json", help="JSON file to write.")] = None,
) -> None:
    """Count how mutated files end; exit code 1 if any ends badly."""
    counts = {"library": files, "http": requests, "checkpoints": checkpoints}
    plan = Plan(seed, processes or available_cores(), tree and tree.resolve(), keep)
    with tempfile.TemporaryDirectory() as name:
        sounds = _files(seeds) or _made_sounds(Path(name))
        tallies = [
            plan.tally(road, count, sounds, Path(name)) for road, count in counts.items() if count
        ]
    if not tallies:
        raise BadRequest("no cases; give --files, --requests or --checkpoints a number above 0")
    typer.echo(report([tally.row() for tally in tallies], out, "How mutated files end"))
    faults = [fault for tally in tallies for fault in tally.faults()]
    if faults:
        typer.echo()
        typer.echo(report(faults, out and out.with_stem(f"{out.stem}-faults"), "What went wrong"))
        typer.echo(f"\nfiles in {keep}")
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which cases are tried, by how many processes, on which server; where bad files go."""

    first: int
    processes: int
    tree: Path | None
    keep: Path

    def tally(self, road: str, count: int, sounds: Sequence[Path], folder: Path) -> Tally:
        """Try so many cases on one road."""
        if road == "http":
            launch = Launch({}, self.tree, folder / "cache", folder / "log")
            with server(launch) as running:
                given = roads.Given(sounds, running.port)
                tally = self._counted(road, roads.http, given, count)
                status = running.child.poll()
                if status is not None:
                    tally.add(Ending(self.first, "CRASH", f"the server ended: status {status}"))
            if tally.faults():
                shutil.copy(folder / "log", self.keep / "server.log")
            return tally
        if road == "library":
            return self._counted(road, roads.library, roads.Given(sounds), count)
        seeds = _made_checkpoints(folder)
        return self._counted(road, roads.checkpoints, roads.Given(seeds), count)

    def _counted(self, road: str, maker: Maker, given: roads.Given, count: int) -> Tally:
        tally = Tally(road, given, self.keep)
        started = time.perf_counter()
        numbers = range(self.first, self.first + count)
        for ending in endings(maker, given, numbers, self.processes, SECONDS[road]):
            tally.add(ending)
        tally.seconds = time.perf_counter() - started
        return tally


def _files(folders: Sequence[Path]) -> list[Path]:
    """All files of some folders that hold sound, or are meant to break what expects it."""
    for folder in folders:
        if not folder.is_dir():
            raise BadRequest(f"no folder {str(folder)!r}; name folders of sound files")
    files = (path for folder in folders for path in sorted(folder.rglob("*")))
    return [path for path in files if path.is_file() and path.suffix not in _NO_SOUND]


def _made_sounds(folder: Path) -> list[Path]:
    """A second of noise in every format that can be written here."""
    paths = []
    for kind in FORMATS:
        paths.append(folder / f"noise.{kind}")
        paths[-1].write_bytes(encoded(clip(0, 1.0), kind))
    return paths


def _made_checkpoints(folder: Path) -> list[Path]:
    """Random models as both kinds of files, and a probe on one of them."""
    import numpy as np
    import torch

    from embedder.probe import Probe

    described = write_checkpoint(roads.PT_MODEL, folder)
    plain = folder / "random.pt"
    torch.save(random_model(roads.PT_MODEL).backbone.state_dict(), plain)
    probe = folder / "probe.safetensors"
    width, labels = _PROBED_SIZE, ("a", "b")
    layers = ((np.ones((width, 2), np.float32), np.zeros(2, np.float32)),)
    mean, scale = np.zeros(width, np.float32), np.ones(width, np.float32)
    Probe(labels, described.name, "", (_PROBED_TAP,), True, mean, scale, layers).save(probe)
    return [described, plain, probe, write_checkpoint(DETECTOR, folder)]
