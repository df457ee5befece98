"""Audio in, embeddings and tags out."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from embedder.events import EventRules
from service import rendering, uploads
from service.middleware import TIMINGS
from service.negotiation import NPY, NPZ, best_format
from service.schemas import (
    EmbedQuery,
    EmbedResponse,
    EventsQuery,
    EventsResponse,
    Problem,
    TagsQuery,
    TagsResponse,
    TimestampsQuery,
)
from service.state import require_key, service_of
from service.tasks import Answer, Task, Upload

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "An option or the multipart body makes no sense.",
        401: "No API key, or a wrong one.",
        404: "No such model.",
        406: "None of the accepted formats can be made.",
        408: "The body did not arrive in time.",
        413: "Larger, longer or more windows than this server takes.",
        415: "No audio in a format that we decode.",
        422: "Broken or empty audio, or an invalid parameter.",
        429: "Busy; Retry-After says when to send the request again.",
        503: "Starting, stopping, or the model cannot be loaded.",
    }.items()
}
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "A file in a form, or the audio itself as the body.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [uploads.FIELD],
                    "properties": {uploads.FIELD: {"type": "string", "format": "binary"}},
                }
            },
            "audio/*": _BINARY,
            "application/octet-stream": _BINARY,
        },
    }
}
_FORMATS: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {NPY: _BINARY, NPZ: _BINARY}}}

router = APIRouter(dependencies=[Depends(require_key)], responses=ERRORS)


@router.post(
    "/embed", response_model=EmbedResponse, responses=_FORMATS, openapi_extra=_BODY, tags=["audio"]
)
async def embed(request: Request, query: Annotated[EmbedQuery, Query()]) -> Response:
    """A vector for the clip, or one for every timestamp.

    npy is the array alone ([D], or [T, D]); npz has `embedding` and `timestamps_ms`.
    """
    task = Task("embedding", query.kind, query.window_ms, query.hop_ms, _taps(query.taps))
    return await _answer(request, query.model, task)


@router.post(
    "/timestamps",
    response_model=EmbedResponse,
    responses=_FORMATS,
    openapi_extra=_BODY,
    tags=["audio"],
)
async def timestamps(request: Request, query: Annotated[TimestampsQuery, Query()]) -> Response:
    """`/embed?kind=timestamps`: by default windows of 160 ms every 50 ms."""
    task = Task("embedding", "timestamps", query.window_ms, query.hop_ms, _taps(query.taps))
    return await _answer(request, query.model, task)


@router.post(
    "/tags", response_model=TagsResponse, responses=_FORMATS, openapi_extra=_BODY, tags=["audio"]
)
async def tags(request: Request, query: Annotated[TagsQuery, Query()]) -> Response:
    """What is heard: the most probable labels.

    npy and npz hold the probabilities of all labels, in the model's order.
    """
    task = Task("tags", query.kind, query.window_ms, query.hop_ms)
    return await _answer(request, query.model, task, query.top_k)


@router.post(
    "/events",
    response_model=EventsResponse,
    responses=_FORMATS,
    openapi_extra=_BODY,
    tags=["audio"],
)
async def events(request: Request, query: Annotated[EventsQuery, Query()]) -> Response:
    """What sounds when.

    npy and npz hold the probabilities of all labels in frames of 40 ms, before the filter.
    """
    media_type, upload = await _prepared(request, query.model, Task("events"))
    rules = EventRules.of(
        upload.served.model.labels,
        query.threshold,
        query.median,
        query.min_duration_ms,
        query.merge_gap_ms,
    )
    answer = await _computed(request, upload)
    return await rendering.respond_events(answer, media_type, rules)


async def _answer(request: Request, model: str | None, task: Task, top_k: int = 0) -> Response:
    media_type, upload = await _prepared(request, model, task)
    return rendering.respond(await _computed(request, upload), media_type, top_k)


async def _prepared(request: Request, model: str | None, task: Task) -> tuple[str, Upload]:
    """The form of the answer, and the upload with what is to be made of it."""
    service = service_of(request)
    service.check_ready()
    media_type = best_format(request.headers.get("accept"))
    data = await uploads.read(request)
    return media_type, await service.engine.prepare(data, model, task)


async def _computed(request: Request, upload: Upload) -> Answer:
    engine = service_of(request).engine
    found = await engine.find(upload)
    if isinstance(found, Answer):
        answer = found
    else:
        answer = await uploads.unless_gone(request, engine.compute(upload, found))
    request.scope[TIMINGS].update(answer.timings)
    return answer


def _taps(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(name.strip() for name in names.split(","))
