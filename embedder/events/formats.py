"""Event lists as files: CSV, JSON, Audacity labels, Raven selection tables, RTTM.

    csv        path, onset, offset, label, score, error; a file that failed is a row with its error
    json       a list of {path, seconds, events, error, note}
    audacity   onset, offset, label; a document holds one recording
    raven      a selection table; several recordings count as one sequence, as Raven opens them
    rttm       NIST's SPEAKER lines; white space in names becomes "_"

Times are seconds of the recording, to the millisecond (Audacity: to the microsecond).
"""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final

from embedder.errors import BadRequest

if TYPE_CHECKING:
    from embedder.events.finder import Event


@dataclass(frozen=True, slots=True)
class Recording:
    """The events of one file, or the error that it failed with."""

    path: str
    seconds: float  # its length
    events: Sequence[Event]
    error: str | None = None
    note: str | None = None  # what is missing of a file that did not fail


class Format(ABC):
    """One document as text: `head`, then a part for every recording, then `tail`."""

    suffix: ClassVar[str]
    head: ClassVar[str] = ""
    tail: ClassVar[str] = ""
    several: ClassVar[bool] = True  # whether one document can hold several recordings

    @abstractmethod
    def part(self, recording: Recording) -> str:
        """The text of the next recording; call it once for each, in their order."""


class Csv(Format):
    """A table with a row for each event."""

    suffix = ".csv"
    head = "path,onset,offset,label,score,error\n"

    def part(self, recording: Recording) -> str:
        """A row for each event, or one for the error; fields are quoted where they must be."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for event in recording.events:
            times = (_seconds(event.onset_s), _seconds(event.offset_s))
            writer.writerow((recording.path, *times, event.label, f"{event.score:.3f}", ""))
        if recording.error is not None:
            writer.writerow((recording.path, "", "", "", "", recording.error))
        return text.getvalue()


class Json(Format):
    """One list with an object for each recording."""

    suffix = ".json"
    head = "["
    tail = "\n]\n"

    def __init__(self) -> None:
        self._separator = "\n"

    def part(self, recording: Recording) -> str:
        """The recording's object, on a line of its own."""
        document = {
            "path": recording.path,
            "seconds": round(recording.seconds, 3),
            "events": [as_json(event) for event in recording.events],
            "error": recording.error,
            "note": recording.note,
        }
        text = f"{self._separator}{json.dumps(document, ensure_ascii=False)}"
        self._separator = ",\n"
        return text


class Audacity(Format):
    """A label track: https://manual.audacityteam.org/man/importing_and_exporting_labels.html."""

    suffix = ".txt"
    several = False

    def part(self, recording: Recording) -> str:
        """A line for each event: onset, offset and label, separated by tabs."""
        return "".join(
            f"{event.onset_s:.6f}\t{event.offset_s:.6f}\t{_one_line(event.label)}\n"
            for event in recording.events
        )


class Raven(Format):
    """A selection table; "File Offset (s)" counts from the beginning of the file "Begin Path"."""

    suffix = ".selections.txt"
    head = (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
        "\tBegin Path\tFile Offset (s)\tAnnotation\tScore\n"
    )

    def __init__(self, band_hz: tuple[float, float]) -> None:
        self._band = f"{band_hz[0]:g}\t{band_hz[1]:g}"
        self._selections = 0
        self._before = 0.0  # seconds of the recordings before this one

    def part(self, recording: Recording) -> str:
        """A row for each event; numbers and times go on from the recording before."""
        rows = []
        for number, event in enumerate(recording.events, self._selections + 1):
            begin, end = self._before + event.onset_s, self._before + event.offset_s
            rows.append(
                f"{number}\tSpectrogram 1\t1\t{_seconds(begin)}\t{_seconds(end)}\t{self._band}"
                f"\t{_one_line(recording.path)}\t{_seconds(event.onset_s)}"
                f"\t{_one_line(event.label)}\t{event.score:.3f}\n"
            )
        self._selections += len(rows)
        self._before += recording.seconds
        return "".join(rows)


class Rttm(Format):
    """Rich Transcription Time Marked; the file id is the path without its suffix."""

    suffix = ".rttm"

    def part(self, recording: Recording) -> str:
        """A SPEAKER line for each event; its label is the speaker's name."""
        name = _one_word(str(PurePath(recording.path).with_suffix("")))
        return "".join(
            f"SPEAKER {name} 1 {_seconds(event.onset_s)} "
            f"{_seconds(event.offset_s - event.onset_s)} "
            f"<NA> <NA> {_one_word(event.label)} {event.score:.3f} <NA>\n"
            for event in recording.events
        )


FORMATS: Final[Mapping[str, type[Format]]] = MappingProxyType(
    {"csv": Csv, "json": Json, "audacity": Audacity, "raven": Raven, "rttm": Rttm}
)


def make_format(name: str, band_hz: tuple[float, float] = (0.0, 0.0)) -> Format:
    """A new document; `band_hz`, the model's lowest and highest frequency, bounds Raven's boxes."""
    kind = FORMATS[check_format(name)]
    return Raven(band_hz) if kind is Raven else kind()


def check_format(name: str) -> str:
    """The name itself; BadRequest unless it names a format."""
    if name not in FORMATS:
        raise BadRequest(f"no format {name!r}; choose one of {', '.join(FORMATS)}")
    return name


def format_of(output: Path) -> str:
    """The name of the format that a file's suffix asks for; the longest suffix counts.

    Raises
    ------
    BadRequest : no format has this suffix.
    """
    matches = [name for name, kind in FORMATS.items() if output.name.lower().endswith(kind.suffix)]
    if not matches:
        suffixes = ", ".join(kind.suffix for kind in FORMATS.values())
        raise BadRequest(f"cannot write {str(output)!r}; name a file in {suffixes}, or --format")
    return max(matches, key=lambda name: len(FORMATS[name].suffix))


def as_json(event: Event) -> dict[str, str | float]:
    """An event as an object of JSON, here and in the service's answers; values to a thousandth."""
    return {
        "label": event.label,
        "onset": round(event.onset_s, 3),
        "offset": round(event.offset_s, 3),
        "score": round(event.score, 3),
    }


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _one_word(text: str) -> str:
    return "_".join(text.split()) or "_"
