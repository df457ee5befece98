"""Routes that take audio and answer embeddings, tags or events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Final, TypeAlias

from fastapi import APIRouter, Depends, Query, Request, Response

from embedder.errors import BadRequest
from embedder.events.finder import EventRules
from embedder.outputs import Kind, Name, Output
from service import rendering, uploads
from service.answers import Answer, Upload
from service.middleware import TIMINGS
from service.models import Served
from service.negotiation import NPY, NPZ, best_format
from service.openapi import ERRORS
from service.schemas import (
    AudioQuery,
    EmbedQuery,
    EmbedResponse,
    EventsQuery,
    EventsResponse,
    TagsQuery,
    TagsResponse,
    TimestampsQuery,
)
from service.state import require_key, service_of

Ask: TypeAlias = Callable[[], Awaitable[tuple[Served, Output]]]  # `Pipeline.ask` of some request

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


async def options_once(request: Request) -> None:
    """Raise BadRequest for an option that is given twice: the first value would be ignored."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name, count in Counter(names).items():
        if count > 1:
            raise BadRequest(
                f"the option {name[:40]!r} is given {count} times; give it once, "
                "several values separated by commas"
            )


router = APIRouter(dependencies=[Depends(require_key), Depends(options_once)], responses=ERRORS)


@router.post(
    "/embed", response_model=EmbedResponse, responses=_FORMATS, openapi_extra=_BODY, tags=["audio"]
)
async def embed(request: Request, query: Annotated[EmbedQuery, Query()]) -> Response:
    """Compute a vector for the clip, or for every timestamp.

    npy has the array alone ([D], or [T, D]); npz has `embedding` and `timestamps_ms`.
    """
    return await _answer(request, query, "embedding", query.kind, taps=_taps(query.taps))


@router.post(
    "/timestamps",
    response_model=EmbedResponse,
    responses=_FORMATS,
    openapi_extra=_BODY,
    tags=["audio"],
)
async def timestamps(request: Request, query: Annotated[TimestampsQuery, Query()]) -> Response:
    """`/embed?kind=timestamps`: by default windows of 160 ms every 50 ms."""
    return await _answer(request, query, "embedding", "timestamps", taps=_taps(query.taps))


@router.post(
    "/tags", response_model=TagsResponse, responses=_FORMATS, openapi_extra=_BODY, tags=["audio"]
)
async def tags(request: Request, query: Annotated[TagsQuery, Query()]) -> Response:
    """Find the most probable labels of the clip, or of every window.

    npy and npz have the probabilities of all labels, in the model's order.
    """
    return await _answer(request, query, "tags", query.kind, query.top_k)


@router.post(
    "/events",
    response_model=EventsResponse,
    responses=_FORMATS,
    openapi_extra=_BODY,
    tags=["audio"],
)
async def events(request: Request, query: Annotated[EventsQuery, Query()]) -> Response:
    """Find which sounds occur from when to when.

    npy and npz have the probabilities of all labels in frames of 40 ms, before the filter.
    """
    ask = partial(service_of(request).pipeline.ask, query.model, "events", "timestamps")
    media_type, upload = await _prepared(request, query, ask)
    rules = EventRules.of(
        upload.served.model.labels,
        query.threshold,
        query.median,
        query.min_duration_ms,
        query.merge_gap_ms,
    )
    answer = await _computed(request, upload)
    return await rendering.respond_events(answer, media_type, rules)


async def _answer(
    request: Request,
    query: AudioQuery,
    name: Name,
    kind: Kind,
    top_k: int = 0,
    taps: tuple[str, ...] | None = None,
) -> Response:
    options = (name, kind, query.window_ms, query.hop_ms, taps)
    ask = partial(service_of(request).pipeline.ask, query.model, *options)
    media_type, upload = await _prepared(request, query, ask)
    return rendering.respond(await _computed(request, upload), media_type, top_k)


async def _prepared(
    request: Request, query: AudioQuery | EventsQuery, ask: Ask
) -> tuple[str, Upload]:
    """Return the media type of the answer, and the upload with what is asked of it."""
    service = service_of(request)
    service.check_ready()
    # Several headers are one list (RFC 9110, section 5.3).
    media_type = best_format(", ".join(request.headers.getlist("accept")))
    data = await uploads.read(request, frozenset(type(query).model_fields))
    if isinstance(query, EventsQuery):
        await service.check_detects(query.model)
    return media_type, await service.pipeline.prepare(data, *await ask())


async def _computed(request: Request, upload: Upload) -> Answer:
    pipeline = service_of(request).pipeline
    outcome = await pipeline.find(upload)
    if isinstance(outcome, Answer):
        answer = outcome
    else:
        pipeline.check_room(upload)
        answer = await uploads.unless_gone(request, pipeline.compute(upload, outcome))
    request.scope[TIMINGS].update(answer.timings)
    return answer


def _taps(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(name.strip() for name in names.split(","))
