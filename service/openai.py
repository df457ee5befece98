"""`POST /v1/embeddings` and `GET /v1/models` as OpenAI's clients expect, with audio for text."""

from __future__ import annotations

import asyncio
import base64
import binascii
import string
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from embedder.errors import BadAudio, BadRequest, UnknownModel
from embedder.outputs import Output
from service import uploads
from service.answers import Answer
from service.errors import OPENAI_PREFIX, InvalidJSON
from service.models import Served
from service.negotiation import JSON
from service.openapi import OPENAI_ERRORS, OPENAI_READ_ERRORS
from service.pipeline import Pipeline
from service.schemas import EmbeddingsRequest, EmbeddingsResponse, ModelCard, ModelList, Usage
from service.state import Service, require_key, service_of

_PREFIX: Final = "data:"
_BASE64: Final = ";base64"
_ON_LOOP: Final = 1 << 16  # characters; longer texts are decoded in a thread
# These marks tell how many values a JSON text has before any of them is made. A request needs a
# few, and two for each clip; the spare ones are for names that contain them.
_SPARE_MARKS: Final = 1000
_MARKS: Final = (b",", b"[", b"{")
_WHITE: Final = string.whitespace.encode()
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/EmbeddingsRequest"}}},
    }
}

router = APIRouter(prefix=OPENAI_PREFIX, dependencies=[Depends(require_key)], tags=["openai"])


@router.get("/models", response_model=ModelList, responses=OPENAI_READ_ERRORS)
async def models(request: Request) -> ModelList:
    """List the models that this server offers."""
    service = service_of(request)
    return ModelList(data=[_card(service, name) for name in service.models.names])


@router.get(
    "/models/{model}",
    response_model=ModelCard,
    responses={**OPENAI_READ_ERRORS, 404: OPENAI_ERRORS[404]},
)
async def model_card(request: Request, model: str) -> ModelCard:
    """Describe a model that this server offers."""
    service = service_of(request)
    if model not in service.models.names:
        raise UnknownModel(model, service.models.names, "GET /v1/models")
    return _card(service, model)


@router.post(
    "/embeddings",
    response_model=EmbeddingsResponse,
    responses=OPENAI_ERRORS,
    openapi_extra=_BODY,
)
async def embeddings(request: Request) -> Response:
    """Compute the scene embeddings of clips given as base64 or data URIs."""
    service = service_of(request)
    service.check_ready()
    body = await _read(request, service.settings.max_inputs)
    served, output = await service.pipeline.ask(body.model, "embedding", taps=_taps(body.taps))
    _check_size(served, output, body.dimensions)
    work = (
        _embed(service.pipeline, index, text, served, output)
        for index, text in enumerate(body.input)
    )
    answers = await uploads.unless_gone(request, _all(list(work)))
    pack = partial(_packed, served.model.name, answers, body.encoding_format)
    return Response(await asyncio.to_thread(pack), media_type=JSON)


async def _read(request: Request, max_inputs: int) -> EmbeddingsRequest:
    """Read and check the body; a long body that is wrong costs little."""
    uploads.check_uncompressed(request)
    if uploads.is_form(request):
        raise BadRequest("send JSON with base64 here; files in a form go to POST /embed")
    data = await request.body()
    check = partial(_checked, data, max_inputs)
    try:
        return check() if len(data) <= _ON_LOOP else await asyncio.to_thread(check)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**fault, "loc": ("body", *fault["loc"])} for fault in faults]
        ) from error


def _checked(data: bytes, max_inputs: int) -> EmbeddingsRequest:
    if sum(map(data.count, _MARKS)) > _SPARE_MARKS + 2 * max_inputs:
        raise BadRequest(
            f"too many values; send up to {max_inputs} clips, each as base64 or a data URI "
            "(tokens are no audio)"
        )
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidJSON(str(error)) from error
    inputs = content.get("input") if isinstance(content, dict) else None
    if isinstance(inputs, list) and len(inputs) > max_inputs:
        raise BadRequest(f"{len(inputs)} inputs; send up to {max_inputs} in one request")
    return EmbeddingsRequest.model_validate(content)


def _taps(names: list[str] | None) -> tuple[str, ...] | None:
    """Split the items of a list at commas: clients may send one text or several."""
    return None if names is None else tuple(tap.strip() for tap in ",".join(names).split(","))


def _check_size(served: Served, output: Output, dimensions: int | None) -> None:
    """BadRequest unless the vectors have this size; they are never cut."""
    taps, sizes = output.taps, served.model.tap_sizes
    size = sum(sizes[tap] for tap in taps)
    if dimensions not in (None, size):
        offered = ", ".join(f"{tap} {sizes[tap]}" for tap in sizes)
        raise BadRequest(
            f"dimensions is {dimensions}; {served.model.name} gives {size} with the taps "
            f"{','.join(taps)}. Its taps have {offered}"
        )


def audio_bytes(text: str) -> bytes:
    """Decode base64 or a data URI; a URL is never fetched."""
    if text[:5].lower() == _PREFIX:
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(_BASE64):
            raise BadRequest("a data URI must look like data:audio/wav;base64,...")
    elif "://" in text[:16]:
        raise BadRequest("URLs are not fetched; send the audio itself as base64")
    try:
        # `split` would make an object of every piece between white space.
        packed = text.encode("ascii").translate(_URL_SAFE, _WHITE)
        return base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"not base64 ({error}); send audio as base64 or a data URI") from error


async def _embed(
    pipeline: Pipeline, index: int, text: str, served: Served, output: Output
) -> Answer:
    try:
        long = len(text) > _ON_LOOP
        data = await asyncio.to_thread(audio_bytes, text) if long else audio_bytes(text)
        return await pipeline.answer(data, served, output)
    except BadAudio as error:
        raise type(error)(f"input[{index}]: {error}") from error
    except BadRequest as error:
        raise BadRequest(f"input[{index}]: {error}") from error


async def _all(work: list[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """Return every answer in order; raise the first error, but only after all have ended."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, Answer)]


def _packed(model: str, answers: list[Answer], encoding: str) -> bytes:
    data = [
        {"object": "embedding", "index": index, "embedding": _values(answer, encoding)}
        for index, answer in enumerate(answers)
    ]
    content = {"object": "list", "data": data, "model": model, "usage": Usage().model_dump()}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def _values(answer: Answer, encoding: str) -> Any:
    if encoding == "float":
        return answer.values
    return base64.b64encode(answer.values.astype("<f4").tobytes()).decode()


def _card(service: Service, name: str) -> ModelCard:
    known = service.models
    return ModelCard(id=name, default=name == known.default, loaded=name in known.loaded)
