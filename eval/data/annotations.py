"""Annotated events: what sounds in a clip, from when to when, and reading files that say so."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from embedder.errors import BadRequest


class TrueEvent(NamedTuple):
    """An annotated sound; its times are in seconds from the start of its clip."""

    onset_s: float
    offset_s: float
    label: str


Truth: TypeAlias = Mapping[str, Sequence[TrueEvent]]  # by the clip's name


def read_truth(path: Path, names: Path | None = None) -> dict[str, list[TrueEvent]]:
    """Read annotations in AudioSet Strong's form; return the events of each clip, in order.

    Parameters
    ----------
    path : tab-separated, with a header: clip, onset, offset in seconds, label. A line that holds
        only the clip means that nothing sounds in it.
    names : comma-separated machine id and label's name, for annotations whose labels are machine
        ids.

    Raises
    ------
    BadRequest : a line is not of this form; the message names it.
    """
    label_names: dict[str, str] = {}
    if names is not None:
        with names.open(encoding="utf-8", newline="") as file:
            label_names = {row[0]: row[1] for row in csv.reader(file)}
    truth: dict[str, list[TrueEvent]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows, None)
        for number, row in enumerate(rows, 2):
            events = truth.setdefault(row[0], []) if row else []
            if len([cell for cell in row if cell]) > 1:
                events.append(_true_event(row, label_names, f"{path}, line {number}"))
    return {clip: merged(events) for clip, events in truth.items()}


def merged(events: Iterable[TrueEvent]) -> list[TrueEvent]:
    """Sort events by onset; events of one label that touch or overlap become one event."""
    last: dict[str, TrueEvent] = {}
    done: list[TrueEvent] = []
    for event in sorted(events):
        before = last.get(event.label)
        if before is not None and event.onset_s <= before.offset_s:
            last[event.label] = before._replace(offset_s=max(before.offset_s, event.offset_s))
            continue
        if before is not None:
            done.append(before)
        last[event.label] = event
    return sorted([*done, *last.values()])


def _true_event(row: Sequence[str], label_names: Mapping[str, str], line: str) -> TrueEvent:
    try:
        _, onset, offset, label = row
        return TrueEvent(float(onset), float(offset), label_names.get(label, label))
    except ValueError as error:
        raise BadRequest(f"{line}: not clip, onset, offset, label, separated by tabs") from error
