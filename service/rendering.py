"""Answers as JSON, npy or npz.

Long answers are made in threads and sent in pieces; a piece is made once the last is on its way. So
no other request waits, and for a client that reads slowly we hold a piece and not the whole text.
"""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Generator, Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from embedder.events.finder import Event, EventFinder, EventRules, in_order
from embedder.events.formats import as_json
from service.answers import Answer
from service.errors import TooMuchWork
from service.negotiation import JSON, NPY, NPZ
from service.off_loop import Streamed

Pieces: TypeAlias = Generator[bytes, None, None]

PIECE_VALUES: Final = 1 << 16  # about 3 ms of making JSON
PIECE_TAGS: Final = 1 << 12  # a label with its score takes as long as many numbers
PIECE_FRAMES: Final = 1 << 8
MAX_EVENTS: Final = 100_000
MAX_COMPARED: Final = 300_000_000  # in medians of events: about 10 s
_EVENTS_HEAD: Final = ("model", "seconds", "cached")


def respond(answer: Answer, media_type: str, top_k: int) -> Response:
    """The answer as JSON, npy or npz; `top_k` is how many tags JSON has."""
    long = answer.values.size > PIECE_VALUES
    if media_type == NPY:
        return _response(answer, NPY, _npy(answer.values), long)
    if media_type == NPZ:
        return _response(answer, NPZ, _npz(answer), long)
    if answer.output.name == "tags":
        top_k = min(top_k, answer.values.shape[-1])
        windows = 1 if answer.values.ndim == 1 else len(answer.values)
        return _response(answer, JSON, _tags(answer, top_k), windows * top_k > PIECE_TAGS)
    return _response(answer, JSON, _embedding(answer), long)


async def respond_events(answer: Answer, media_type: str, rules: EventRules) -> Response:
    """The events as JSON, or as npy or npz the probabilities [T, N] that events are made of."""
    if media_type != JSON:
        return respond(answer, media_type, top_k=0)
    events = await asyncio.to_thread(find_events, answer, rules)
    head = {key: value for key, value in _head(answer).items() if key in _EVENTS_HEAD}
    pieces = (
        b",".join(_dump(as_json(event)) for event in events[first : first + PIECE_TAGS])
        for first in range(0, len(events), PIECE_TAGS)
    )
    return _response(answer, JSON, _listing(head, "events", pieces), len(events) > PIECE_TAGS)


def find_events(answer: Answer, rules: EventRules) -> list[Event]:
    """The events by onset; TooMuchWork as soon as they, or their medians, are too many."""
    finder = EventFinder(rules)
    events: list[Event] = []
    for first in range(0, len(answer.values), PIECE_FRAMES):
        events += finder.push(answer.values[first : first + PIECE_FRAMES])
        _check_events(len(events), finder.compared)
    events += finder.finish(answer.seconds)
    _check_events(len(events), finder.compared)
    return in_order(events)


def _check_events(count: int, compared: int) -> None:
    if count > MAX_EVENTS or compared > MAX_COMPARED:
        what = "events" if count > MAX_EVENTS else "values in medians"
        most = MAX_EVENTS if count > MAX_EVENTS else MAX_COMPARED
        raise TooMuchWork(
            f"more than {most:,} {what}; use a higher threshold, another median or a shorter "
            "clip, or ask for application/x-npy"
        )


def _response(answer: Answer, media_type: str, pieces: Pieces, long: bool) -> Response:
    headers = {"x-cache": answer.cache, "x-model": answer.served.model.name}
    if long:
        return Streamed(pieces, headers, media_type)
    return Response(b"".join(pieces), headers=headers, media_type=media_type)


def _head(answer: Answer) -> dict[str, Any]:
    output = answer.output
    head: dict[str, Any] = {
        "model": answer.served.model.name,
        "kind": output.kind,
        "seconds": answer.seconds,
        "cached": answer.cache == "hit",
    }
    if output.name == "embedding":
        head["size"] = answer.values.shape[-1]
    if output.kind == "timestamps":
        head |= {"window_ms": output.window_ms, "hop_ms": output.hop_ms}
        if output.name == "embedding":
            head["timestamps_ms"] = answer.ms
    return head


def _embedding(answer: Answer) -> Pieces:
    """A vector [D], or rows [n, D]."""
    values = answer.values
    step = max(1, PIECE_VALUES * len(values) // values.size)
    pieces = (_dump(values[first : first + step])[1:-1] for first in range(0, len(values), step))
    return _listing(_head(answer), "embedding", pieces)


def _tags(answer: Answer, top_k: int) -> Pieces:
    labels = answer.served.model.labels
    if answer.output.kind == "scene":
        pieces = iter([_dump(top_tags(answer.values, labels, top_k))[1:-1]])
        return _listing(_head(answer), "tags", pieces)
    step = max(1, PIECE_TAGS // top_k)
    ms = answer.ms.tolist()

    def windows(first: int) -> bytes:
        rows = zip(ms[first : first + step], answer.values[first : first + step], strict=True)
        tags = [{"ms": centre, "tags": top_tags(row, labels, top_k)} for centre, row in rows]
        return _dump(tags)[1:-1]

    return _listing(_head(answer), "windows", map(windows, range(0, len(ms), step)))


def top_tags(
    scores: NDArray[np.float32], labels: tuple[str, ...], top_k: int
) -> list[dict[str, Any]]:
    """The best `top_k`, best first; equal scores in the order of labels."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[i], "score": scores[i], "index": int(i)} for i in best]


def _listing(head: dict[str, Any], name: str, pieces: Iterator[bytes]) -> Pieces:
    """One JSON object whose last member is a list that comes in pieces."""
    yield _dump(head)[:-1] + b"," + _dump(name) + b":["
    comma = b""
    for piece in pieces:
        yield comma + piece
        comma = b","
    yield b"]}"


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _npy(array: NDArray[Any]) -> Pieces:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    yield file.getvalue()
    raw = np.ascontiguousarray(array).reshape(-1)
    for first in range(0, raw.size, PIECE_VALUES):
        yield raw[first : first + PIECE_VALUES].tobytes()


def _npz(answer: Answer) -> Pieces:
    """The bytes that np.savez writes, in pieces."""
    output = answer.output
    name: str = "probabilities" if output.name == "events" else output.name
    arrays: dict[str, NDArray[Any]] = {name: answer.values}
    if output.kind == "timestamps":
        arrays["timestamps_ms"] = answer.ms
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                for piece in _npy(array):
                    member.write(piece)
                    yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A file that cannot seek, and forgets what was taken from it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        """What was written since the last time."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
