"""The schema at /openapi.json, with every status of an answer and the form of errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel

from service.errors import PROBLEM
from service.negotiation import JSON
from service.schemas import EmbeddingsRequest, OpenAIError, Problem

Responses = dict[int | str, dict[str, Any]]

_EVERYWHERE: Final = {
    403: "A browser sent this for a page that may not use this server.",
    421: "This server does not allow the request's host name.",
    500: "An error of this server; its log says more.",
}
_NOT_READY: Final = {503: "The server is starting or stopping, or the model cannot be loaded."}
_WITH_KEY: Final = {401: "No API key, or a wrong one."}
_WITH_BODY: Final = {
    400: "An option or the body is invalid.",
    404: "No such model.",
    406: "The server makes none of the accepted formats.",
    408: "The body did not arrive in time.",
    413: "Larger, longer or more work than this server takes.",
    415: "The body is compressed, or no audio in a format that this server decodes.",
    422: "Broken or empty audio, or an invalid option.",
    429: "The server is busy; Retry-After says when to send the request again.",
}
_SECURITY: Final = {"APIKey": {"type": "http", "scheme": "bearer"}}


def _responses(form: type[BaseModel], media_type: str, texts: dict[int, str]) -> Responses:
    schema = {"$ref": f"#/components/schemas/{form.__name__}"}
    content = {media_type: {"schema": schema}}
    return {status: {"description": text, "content": content} for status, text in texts.items()}


_ALL: Final = {**_WITH_BODY, **_WITH_KEY, **_NOT_READY, **_EVERYWHERE}
ERRORS: Final = _responses(Problem, PROBLEM, _ALL)
OPENAI_ERRORS: Final = _responses(OpenAIError, JSON, _ALL)
OPENAI_READ_ERRORS: Final = _responses(OpenAIError, JSON, {**_WITH_KEY, **_EVERYWHERE})
OPEN_ERRORS: Final = _responses(Problem, PROBLEM, _EVERYWHERE)
READ_ERRORS: Final = {**OPEN_ERRORS, 401: ERRORS[401]}


def describe(app: FastAPI, asks_for_key: bool) -> None:
    """Complete the schema of an application; all its routes must have been added."""
    schema = app.openapi()
    components = schema.setdefault("components", {})
    for form in (Problem, OpenAIError, EmbeddingsRequest):  # no route names them
        models = form.model_json_schema(ref_template="#/components/schemas/{model}")
        components["schemas"].update({**models.pop("$defs", {}), form.__name__: models})
    if asks_for_key:
        components["securitySchemes"] = _SECURITY
        for operation in _operations(schema):
            if str(HTTPStatus.UNAUTHORIZED.value) in operation["responses"]:
                operation["security"] = [{name: []} for name in _SECURITY]


def _operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in schema["paths"].values() for operation in path.values()]
