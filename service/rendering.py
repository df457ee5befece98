"""Answers as JSON, npy or npz. Long ones are sent in pieces, so that no other request waits."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any, Final

import numpy as np
import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray

from embedder.annotations import as_json
from embedder.events import EventFinder, EventRules, in_order
from service.negotiation import JSON, NPY, NPZ
from service.tasks import Answer

PIECE_VALUES: Final = 1 << 16  # about 3 ms of making JSON
_EVENTS_HEAD: Final = ("model", "seconds", "cached")


def respond(answer: Answer, media_type: str, top_k: int) -> Response:
    """The answer in one of our formats."""
    headers = {"x-cache": answer.cache, "x-model": answer.served.model.name}
    if media_type == NPY:
        return Response(_npy(answer.values), headers=headers, media_type=NPY)
    if media_type == NPZ:
        return Response(_npz(answer), headers=headers, media_type=NPZ)
    if answer.task.asked.output == "tags":
        return Response(_tags(answer, top_k), headers=headers, media_type=JSON)
    if answer.values.size <= PIECE_VALUES:
        body = {**_head(answer), "embedding": answer.values}
        return Response(_dump(body), headers=headers, media_type=JSON)
    return StreamingResponse(_long_json(answer), headers=headers, media_type=JSON)


async def respond_events(answer: Answer, media_type: str, rules: EventRules) -> Response:
    """The events as JSON; as npy or npz the probabilities [T, N] that they are made of."""
    if media_type != JSON:
        return respond(answer, media_type, top_k=0)
    found = await asyncio.to_thread(_events, answer, rules)
    headers = {"x-cache": answer.cache, "x-model": answer.served.model.name}
    return Response(found, headers=headers, media_type=JSON)


def _events(answer: Answer, rules: EventRules) -> bytes:
    finder = EventFinder(rules)
    found = [*finder.push(answer.values), *finder.finish(answer.seconds)]
    head = {key: value for key, value in _head(answer).items() if key in _EVENTS_HEAD}
    return _dump({**head, "events": [as_json(event) for event in in_order(found)]})


def _head(answer: Answer) -> dict[str, Any]:
    asked = answer.task.asked
    head: dict[str, Any] = {
        "model": answer.served.model.name,
        "kind": asked.kind,
        "seconds": answer.seconds,
        "cached": answer.cache == "hit",
    }
    if asked.output == "embedding":
        head["size"] = answer.values.shape[-1]
    if asked.kind == "timestamps":
        head |= {"window_ms": asked.window_ms, "hop_ms": asked.hop_ms}
        if asked.output == "embedding":
            head["timestamps_ms"] = answer.ms
    return head


def _tags(answer: Answer, top_k: int) -> bytes:
    labels = answer.served.model.labels
    body = _head(answer)
    if answer.task.asked.kind == "scene":
        body["tags"] = top_tags(answer.values, labels, top_k)
    else:
        body["windows"] = [
            {"ms": ms, "tags": top_tags(scores, labels, top_k)}
            for ms, scores in zip(answer.ms.tolist(), answer.values, strict=True)
        ]
    return _dump(body)


def top_tags(
    scores: NDArray[np.float32], labels: tuple[str, ...], top_k: int
) -> list[dict[str, Any]]:
    """The best `top_k`, best first; equal scores in the order of labels."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[i], "score": scores[i], "index": int(i)} for i in best]


async def _long_json(answer: Answer) -> AsyncIterator[bytes]:
    """One object whose last member, a list of rows, comes in pieces."""
    yield _dump(_head(answer))[:-1] + b',"embedding":['
    step = max(1, PIECE_VALUES // answer.values.shape[1])
    for first in range(0, len(answer.values), step):
        rows = _dump(answer.values[first : first + step])[1:-1]
        yield rows if first == 0 else b"," + rows
    yield b"]}"


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _npz(answer: Answer) -> bytes:
    output = answer.task.asked.output
    name = "probabilities" if output == "events" else output
    arrays: dict[str, Any] = {name: answer.values}
    if answer.task.asked.kind == "timestamps":
        arrays = {**arrays, "timestamps_ms": answer.ms}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
