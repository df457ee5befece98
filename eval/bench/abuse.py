"""`embedder bench abuse`: what attacks cost a server, and whether it keeps its promises.

Every attack is sent to a new server with default settings, which is stopped after SECONDS or when
it takes too much memory.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from embedder.defaults import DEFAULT_MODEL
from embedder.errors import BadRequest
from eval.bench.attacks import ATTACKS, Attack, Bound, Target, material
from eval.bench.launch import Launch, server
from eval.bench.promises import PROMISES, Outcome, Promise
from eval.bench.report import TableRow, report
from eval.bench.watch import MiB, ServerUsage, ServerWatch
from eval.bench.wire import Reply

SECOND_MODEL: Final = "mn04_as"
SECONDS: Final = 180.0  # an attack may take so long
_KEPT: Final = {True: "yes", False: "NO"}


@dataclass(frozen=True, slots=True)
class AttackCost:
    """The replies to an attack, and what it cost the server."""

    replies: Sequence[Reply]
    usage: ServerUsage
    disk_mib: float

    @property
    def seconds(self) -> float:
        """The longest time from a request to the end of its answer."""
        return max((reply.seconds for reply in self.replies), default=SECONDS)

    @property
    def mib(self) -> float:
        """Memory above what the server had when it was ready [MiB]."""
        return self.usage.peak_mib - self.usage.start_mib

    @property
    def threads(self) -> int:
        """Threads above the number that the server had when it was ready."""
        return self.usage.threads - self.usage.start_threads

    @property
    def received(self) -> int:
        """Bytes of all answers."""
        return sum(reply.received for reply in self.replies)

    def kept(self, bound: Bound) -> bool:
        """Return whether the cost stayed within the bound."""
        answered = all(
            reply.status in bound.statuses and reply.end in ("whole", *_CLOSED[reply.status == 0])
            for reply in self.replies
        )
        return (
            bool(self.replies)
            and answered
            and not self.usage.killed
            and self.seconds <= bound.seconds
            and self.mib <= bound.mib
            and self.usage.stall <= bound.stall
            and self.threads <= bound.threads
            and self.disk_mib <= bound.disk_mib
        )

    def __str__(self) -> str:
        names = Counter(reply.name for reply in self.replies)
        statuses = ", ".join(
            name if count == 1 else f"{count}× {name}" for name, count in names.items()
        )
        parts = [
            statuses or "no end",
            f"{self.seconds:.1f} s",
            f"+{self.mib:.0f} MiB",
            f"stall {self.usage.stall:.2f} s",
            f"{self.received / 1e6:.3g} MB back",
        ]
        if self.threads > 0:
            parts.append(f"+{self.threads} threads")
        if self.disk_mib >= 1:
            parts.append(f"+{self.disk_mib:.0f} MiB of disk")
        return "; ".join([*parts, "killed at the limit"] if self.usage.killed else parts)


# How a connection may end, besides "whole" (see wire.Reply). Without an answer (True), the server
# may close it. With an answer (False), it may be longer than the client reads.
_CLOSED: Final = {True: ("cut", "reset"), False: ("long",)}


def abuse(
    tree: Annotated[
        Path | None, typer.Option(help="Source tree to serve from; default: this installation.")
    ] = None,
    only: Annotated[
        list[str], typer.Option(help="Rows by name, with * and ?; repeat for several.")
    ] = ["*"],  # noqa: B006
    limit: Annotated[int, typer.Option(help="MiB at which a server is killed.")] = 6000,
    scale: Annotated[float, typer.Option(help="Share of the attacks' counts and sizes.")] = 1.0,
    before: Annotated[Path | None, typer.Option(help="JSON of a run to show beside.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "--json", help="JSON file to write.")] = None,
) -> None:
    """Attack servers, each with another attack; one table of what it cost, one of promises."""
    attacks = [attack for attack in ATTACKS if _chosen(attack.name, only)]
    promises = [promise for promise in PROMISES if _chosen(promise.name, only)]
    if not attacks and not promises:
        raise BadRequest(f"no row is named {', '.join(only)}; leave --only out to see all names")
    earlier = _earlier(before)
    material()
    rows: list[TableRow] = []
    with tempfile.TemporaryDirectory() as name:
        bench = _Launcher(Path(name), tree and tree.resolve(), limit, scale)
        for attack in attacks:
            rows.append(_attack_row(attack, bench.attacked(attack)))
            typer.echo(f"{rows[-1]['row']}: {rows[-1]['measured']}", err=True)
        for promise in promises:
            rows.append(_promise_row(promise, bench.asked(promise)))
            typer.echo(f"{rows[-1]['row']}: {rows[-1]['measured']}", err=True)
    title = "What attacks cost"
    text = report(rows, out, title)
    if earlier:
        text = report([_beside(row, earlier) for row in rows], None, title)
    typer.echo(text)


@dataclass(frozen=True, slots=True)
class _Launcher:
    """Starts a new server for each attack or promise."""

    folder: Path
    tree: Path | None
    limit: int
    scale: float

    def attacked(self, attack: Attack) -> AttackCost:
        """Send an attack to a new server, and return what it cost."""
        models = [DEFAULT_MODEL]
        settings = {}
        if attack.two_models:
            second = self._second_model()
            settings["MODELS"] = str(second)
            models.append(second.stem)
        cache = Path(tempfile.mkdtemp(dir=self.folder))
        with server(Launch(settings, self.tree, cache)) as running:
            used = _size(cache)
            watch = ServerWatch(running.child.pid, running.port, self.limit)
            try:
                replies = asyncio.run(_bounded(attack, Target(running.port, models, self.scale)))
            finally:
                usage = watch.end()
            return AttackCost(replies, usage, (_size(cache) - used) / MiB)

    def asked(self, promise: Promise) -> Outcome:
        """Check a promise on a new server."""
        with self._launch() as launch:
            return promise.check(launch, self.scale)

    @contextmanager
    def _launch(self) -> Iterator[Launch]:
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            yield Launch({}, self.tree, Path(cache))

    def _second_model(self) -> Path:
        from eval.bench.material import write_checkpoint

        return write_checkpoint(SECOND_MODEL, self.folder)


async def _bounded(attack: Attack, target: Target) -> list[Reply]:
    """Send an attack; return no replies if it takes longer than SECONDS."""
    try:
        return await asyncio.wait_for(attack.send(target), SECONDS)
    except TimeoutError:
        return []


def _attack_row(attack: Attack, cost: AttackCost) -> TableRow:
    return {
        "row": attack.name,
        "bound": str(attack.bound),
        "measured": str(cost),
        "kept": _KEPT[cost.kept(attack.bound)],
    }


def _promise_row(promise: Promise, outcome: Outcome) -> TableRow:
    return {
        "row": promise.name,
        "bound": promise.bound,
        "measured": outcome.measured,
        "kept": _KEPT[outcome.kept],
    }


def _beside(row: TableRow, earlier: dict[str, str]) -> TableRow:
    """Return a row that also shows what an earlier run measured."""
    return {
        "row": row["row"],
        "bound": row["bound"],
        "before": earlier.get(row["row"], "-"),
        "after": row["measured"],
        "kept": row["kept"],
    }


def _earlier(path: Path | None) -> dict[str, str]:
    """Return {row: what an earlier run measured}."""
    if path is None:
        return {}
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        return {row["row"]: row["measured"] for row in content["rows"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadRequest(
            f"{path} is no result of `embedder bench abuse --json` ({error})"
        ) from error


def _chosen(name: str, patterns: Sequence[str]) -> bool:
    return any(name == pattern or fnmatch(name, pattern) for pattern in patterns)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
