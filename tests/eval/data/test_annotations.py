"""Annotated events are read from files, and those that touch become one."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedder.errors import BadRequest
from eval.data.annotations import TrueEvent, merged, read_truth


def test_events_of_one_label_that_touch_are_one() -> None:
    events = [(3, 4, "a"), (0, 1, "a"), (1, 2, "a"), (0, 5, "b"), (1.5, 1.7, "a"), (2.5, 2.6, "a")]
    assert merged(TrueEvent(*event) for event in events) == [
        (0, 2, "a"),
        (0, 5, "b"),
        (2.5, 2.6, "a"),
        (3, 4, "a"),
    ]


def test_annotations_are_read(tmp_path: Path) -> None:
    table = tmp_path / "strong.tsv"
    table.write_text(
        "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
        'x_1000\t2.5\t3\t/m/0bt9lr\nx_1000\t0\t1.25\t/g/122z_qxw\ny\t\t\t\nz\t0\t1\tOdd "one"\n',
        "utf-8",
    )
    names = tmp_path / "names.csv"
    names.write_text('/m/0bt9lr,Dog\n/g/122z_qxw,"Firecracker, loud"\n', "utf-8")
    assert read_truth(table, names) == {
        "x_1000": [(0, 1.25, "Firecracker, loud"), (2.5, 3, "Dog")],
        "y": [],
        "z": [(0, 1, 'Odd "one"')],
    }
    table.write_text("head\nx\tsoon\tlate\tDog\n")
    with pytest.raises(BadRequest, match="line 2"):
        read_truth(table)
