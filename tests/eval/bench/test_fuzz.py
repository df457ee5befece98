"""Fuzzing and soaking in miniature: cases repeat, and each end is that of its case."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedder.cli import app
from eval.bench import roads
from eval.bench.crashes import Case, Ending, endings
from eval.bench.material import clip, encoded
from eval.bench.mixed import MixedLoad
from eval.bench.mutation import GENERAL, HEADER, MUTATIONS, mutated
from eval.bench.soak import Moment, judged
from eval.bench.tally import Tally
from eval.bench.watch import Sample
from tests.service_kit import FakeModel, fake_app, live

SEEDS = [encoded(clip(0, 0.2), "wav"), encoded(clip(1, 0.2), "flac")]


@pytest.mark.parametrize("kind", GENERAL)
def test_a_mutation_repeats_and_changes_files(kind: str) -> None:
    every = [mutated(SEEDS, number, [kind]) for number in range(20)]
    assert every == [mutated(SEEDS, number, [kind]) for number in range(20)]
    assert sum(data not in SEEDS for data in every) > 15
    assert mutated([b""], 0, [kind]) is not None


def test_a_headers_values_change_and_its_tensors_stay() -> None:
    header = json.dumps({"__metadata__": {"embedder": '{"labels": ["a", "b"]}'}}).encode()
    seed = len(header).to_bytes(8, "little") + header + b"tensors"
    every = {mutated([seed], number, HEADER) for number in range(50)}
    assert len(every) > 20
    for data in every:
        size = int.from_bytes(data[:8], "little")
        json.loads(data[8 : 8 + size])
        assert data[8 + size :] == b"tensors"


def test_every_kind_of_mutation_is_tried() -> None:
    assert {*GENERAL, *HEADER} == set(MUTATIONS)


def moody(fault: int) -> Case:
    """Cases of which number 3 dies, 5 hangs, and `fault` is untyped."""

    def case(number: int) -> Ending:
        if number == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 5:
            time.sleep(600)
        return Ending(number, "UNTYPED" if number == fault else "done")

    return case


def test_a_crash_and_a_hang_are_those_of_their_cases() -> None:
    found = {end.number: end.outcome for end in endings(moody, 7, range(10), 1, seconds=3)}
    expected = dict.fromkeys(range(10), "done") | {3: "CRASH", 5: "TIMEOUT", 7: "UNTYPED"}
    assert found == expected


def test_what_ends_badly_is_kept_and_can_be_repeated(tmp_path: Path) -> None:
    seeds = _files(tmp_path, SEEDS)
    tally = Tally("library", roads.FuzzInputs(seeds), tmp_path / "kept")
    for number in range(6):
        tally.add(Ending(number, "done" if number == 0 else "UNTYPED", "why"))
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == [f"library-untyped-{number}.audio" for number in (1, 2, 3)]
    assert (tmp_path / "kept" / kept[0]).read_bytes() == roads.audio(SEEDS, 1)
    assert tally.row()["UNTYPED"] == 5
    assert tally.faults() == [
        {"road": "library", "outcome": "UNTYPED", "cases": 5, "reason": "why"}
    ]


def test_requests_repeat_and_are_answered(tmp_path: Path) -> None:
    with live(fake_app(FakeModel())) as port:
        case = roads.http(roads.FuzzInputs(_files(tmp_path, SEEDS), port))
        assert roads.random_request(port, SEEDS, 9) == roads.random_request(port, SEEDS, 9)
        outcomes = Counter(case(number).outcome for number in range(40))
    assert outcomes["refused"] > 5
    assert outcomes["done"] > 2


def test_the_command_counts_every_road(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    words = "bench fuzz --files 30 --requests 0 --checkpoints 6 --processes 1"
    paths = ["--keep", str(tmp_path / "kept"), "--json", str(out)]
    result = CliRunner().invoke(app, [*words.split(), *paths])
    rows = {row["road"]: row for row in json.loads(out.read_text("utf-8"))["rows"]}
    assert rows["library"]["cases"] == 30
    assert rows["checkpoints"]["cases"] == 6
    bad = sum(row[outcome] for row in rows.values() for outcome in roads.BAD)
    assert result.exit_code == bool(bad)


def test_a_mixed_load_has_all_that_it_names() -> None:
    with live(fake_app(FakeModel())) as port:
        load = MixedLoad(port, ("fake",), "fake")
        asyncio.run(load.run(clients=2, seconds=2))
    assert load.counts["200"] > 5
    assert not any(name.startswith(("5", "no answer")) for name in load.counts)


def _moments(memory: Iterable[float], threads: int = 0) -> list[Moment]:
    return [
        Moment(60.0 * minute, Sample(mib, 100, 10 + threads * minute, 20, 2), 100 * minute)
        for minute, mib in enumerate(memory)
    ]


@pytest.mark.parametrize(
    ("moments", "counts", "status", "broken"),
    [
        (_moments([300, 500, 600, 600, 601, 600]), {"200": 9, "413": 1, "given up": 1}, 0, []),
        (_moments([300, 500, 600, 700, 800, 900]), {"200": 9}, 0, ["memory, rise"]),
        (_moments([2000] * 6), {"200": 9}, 0, ["memory at"]),
        (_moments([600] * 6, threads=3), {"200": 9}, 0, ["threads"]),
        (_moments([600] * 6), {"200": 9, "500": 1}, 0, ["answers"]),
        (_moments([600] * 6), {"200 cut": 9}, 0, ["answers"]),
        (_moments([600] * 6), {"200": 9}, -15, ["exit status"]),
    ],
)
def test_a_soak_is_judged(
    moments: list[Moment], counts: dict[str, int], status: int, broken: list[str]
) -> None:
    failed = [check["what"] for check in judged(moments, counts, status) if check["kept"] == "NO"]
    assert len(failed) == len(broken)
    assert all(what.startswith(start) for what, start in zip(failed, broken, strict=True))


def _files(folder: Path, contents: Iterable[bytes]) -> list[Path]:
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"seed{number}")
        paths[-1].write_bytes(content)
    return paths
