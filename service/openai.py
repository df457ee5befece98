"""`POST /v1/embeddings` and `GET /v1/models` as OpenAI's clients expect them, audio for text."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Coroutine
from typing import Any, Final

import orjson
from fastapi import APIRouter, Depends, Request, Response

from embedder.errors import BadAudio, BadRequest
from service import uploads
from service.engine import Engine
from service.negotiation import JSON
from service.routes import ERRORS
from service.schemas import EmbeddingsRequest, EmbeddingsResponse, ModelCard, ModelList, Usage
from service.state import require_key, service_of
from service.tasks import Answer, Task

_PREFIX: Final = "data:"
_BASE64: Final = ";base64"

router = APIRouter(
    prefix="/v1", dependencies=[Depends(require_key)], responses=ERRORS, tags=["openai"]
)


@router.get("/models", response_model=ModelList)
async def models(request: Request) -> ModelList:
    """The models that may be asked for."""
    known = service_of(request).models
    return ModelList(
        data=[
            ModelCard(id=name, default=name == known.default, loaded=name in known.loaded)
            for name in known.names
        ]
    )


@router.post("/embeddings", response_model=EmbeddingsResponse)
async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
    """Scene embeddings of clips given as base64 or data URIs."""
    service = service_of(request)
    service.check_ready()
    inputs = [body.input] if isinstance(body.input, str) else body.input
    if len(inputs) > service.settings.max_inputs:
        raise BadRequest(
            f"{len(inputs)} inputs; send up to {service.settings.max_inputs} in one request"
        )
    work = (_embed(service.engine, index, text, body.model) for index, text in enumerate(inputs))
    answers = await uploads.unless_gone(request, _all(list(work)))
    size = answers[0].values.size
    if body.dimensions not in (None, size):
        raise BadRequest(f"dimensions is {body.dimensions}; this model has {size}")
    data = [
        {"object": "embedding", "index": index, "embedding": _values(answer, body.encoding_format)}
        for index, answer in enumerate(answers)
    ]
    model = answers[0].served.model.name
    content = {"object": "list", "data": data, "model": model, "usage": Usage().model_dump()}
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)


def audio_bytes(text: str) -> bytes:
    """Base64 or a data URI; nothing is ever fetched."""
    if text[:5].lower() == _PREFIX:
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(_BASE64):
            raise BadRequest("a data URI must look like data:audio/wav;base64,...")
    elif "://" in text[:16]:
        raise BadRequest("URLs are not fetched; send the audio itself as base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"not base64 ({error}); send audio as base64 or a data URI") from error


async def _embed(engine: Engine, index: int, text: str, model: str | None) -> Answer:
    try:
        return await engine.answer(audio_bytes(text), model, Task("embedding"))
    except BadAudio as error:
        raise type(error)(f"input[{index}]: {error}") from error


async def _all(work: list[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """Every answer in order; the first error, but only after all have ended."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, Answer)]


def _values(answer: Answer, encoding: str) -> Any:
    if encoding == "float":
        return answer.values
    return base64.b64encode(answer.values.astype("<f4").tobytes()).decode()
