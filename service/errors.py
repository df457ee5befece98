"""The service's own errors, and the HTTP status of every error.

Every error has a stable `code`. Clients receive it as problem JSON (RFC 9457), and below /v1 in the
form that OpenAI's clients read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from embedder.errors import (
    AudioTooLarge,
    BadAudio,
    BadRequest,
    DownloadFailed,
    EmbedderError,
    UnknownModel,
    UnknownTap,
    UnsupportedAudio,
    WeightsError,
    WeightsMismatch,
    WeightsNotFound,
)

PROBLEM: Final = "application/problem+json"
OPENAI_PREFIX: Final = "/v1"
MAX_FAULTS: Final = 5  # an answer lists no more invalid options than this
LONGEST_WAIT: Final = 300  # seconds; Retry-After never asks for more
RETRY_SECONDS: Final = 10  # from a failed load of a model to the next attempt
_log = logging.getLogger(__name__)


class ServiceError(EmbedderError):
    """The base of errors that only a server raises; `headers` are added to the response."""

    code = "service_error"

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})


class Unauthorized(ServiceError):
    """The request has no API key, or a wrong one."""

    code = "unauthorized"

    def __init__(self) -> None:
        super().__init__(
            "send the API key as 'Authorization: Bearer KEY'", {"www-authenticate": "Bearer"}
        )


class OriginNotAllowed(ServiceError):
    """A browser sent the request for a page of another origin."""

    code = "origin_not_allowed"

    def __init__(self, origin: str | None) -> None:
        page = "a page of another site" if origin is None else f"a page of {origin!r}"
        super().__init__(
            f"{page} may not use this server; if it should, add its origin (https://example.org) "
            "to EMBEDDER_CORS_ORIGINS"
        )


class HostNotAllowed(ServiceError):
    """The request was sent to a host name that this server does not allow."""

    code = "host_not_allowed"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"{host!r} is no name of this server; use its address or localhost, or add the name "
            "to EMBEDDER_ALLOWED_HOSTS"
        )


class InvalidJSON(ServiceError):
    """The body is not JSON."""

    code = "invalid_json"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the body is not JSON: {reason}")


class UnsupportedEncoding(ServiceError):
    """The body is compressed."""

    code = "unsupported_encoding"

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"the body has Content-Encoding {encoding!r}; send it without compression",
            {"accept-encoding": "identity"},
        )


class NotAcceptable(ServiceError):
    """The server makes none of the formats that the client accepts."""

    code = "not_acceptable"


class BodyTimeout(ServiceError):
    """The request's body did not arrive in time."""

    code = "body_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not arrive within {seconds:g} s; send a smaller file")


class BodyTooLarge(ServiceError):
    """The request's body is larger than this server accepts."""

    code = "body_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body exceeds {limit:,} bytes; send a smaller file")


class TooMuchWork(ServiceError):
    """The request asks for more windows or values than this server computes for one request."""

    code = "too_much_work"


class Overloaded(ServiceError):
    """The server is busy; the same request will succeed later."""

    code = "overloaded"

    def __init__(self, retry_after: float) -> None:
        seconds = str(min(LONGEST_WAIT, max(1, round(retry_after))))
        super().__init__(
            f"the server is busy; send this request again in {seconds} s", {"retry-after": seconds}
        )


class NotReady(ServiceError):
    """The server cannot take a request now: it is starting or stopping, or it lacks something."""

    code = "not_ready"

    def __init__(self, reason: str, retry_after: int = 5) -> None:
        super().__init__(reason, {"retry-after": str(retry_after)})


class Hung(ServiceError):
    """A batch takes so long that it will never end; only a restart helps."""

    code = "hung"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a batch has been computed for {seconds:.0f} s; restart this server")


class NonFiniteResult(ServiceError):
    """The model gave NaN or Inf for this audio; such a result is never sent or cached."""

    code = "non_finite_result"

    def __init__(self) -> None:
        super().__init__("the model gives no finite result for this audio; scale it to [-1, 1]")


STATUS: Final[Mapping[type[EmbedderError], HTTPStatus]] = {
    EmbedderError: HTTPStatus.BAD_REQUEST,
    BadAudio: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnsupportedAudio: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    AudioTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    BadRequest: HTTPStatus.BAD_REQUEST,
    UnknownModel: HTTPStatus.NOT_FOUND,
    UnknownTap: HTTPStatus.BAD_REQUEST,
    WeightsError: HTTPStatus.SERVICE_UNAVAILABLE,
    WeightsNotFound: HTTPStatus.SERVICE_UNAVAILABLE,
    WeightsMismatch: HTTPStatus.SERVICE_UNAVAILABLE,
    DownloadFailed: HTTPStatus.SERVICE_UNAVAILABLE,
    ServiceError: HTTPStatus.INTERNAL_SERVER_ERROR,
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    OriginNotAllowed: HTTPStatus.FORBIDDEN,
    HostNotAllowed: HTTPStatus.MISDIRECTED_REQUEST,
    InvalidJSON: HTTPStatus.BAD_REQUEST,
    UnsupportedEncoding: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    NotAcceptable: HTTPStatus.NOT_ACCEPTABLE,
    BodyTimeout: HTTPStatus.REQUEST_TIMEOUT,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    TooMuchWork: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    Hung: HTTPStatus.SERVICE_UNAVAILABLE,
    NonFiniteResult: HTTPStatus.UNPROCESSABLE_ENTITY,
}


class ErrorResponse(Response):
    """An error in the form that the path's clients read; the path is known when it is sent."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        errors: list[dict[str, str]] | None = None,
    ) -> None:
        self._openai = openai_error(status, code, detail, errors)
        title = HTTPStatus(status).phrase
        body = {"type": "about:blank", "title": title, "status": status, "code": code}
        listed = {} if errors is None else {"errors": errors}
        content = orjson.dumps({**body, "detail": detail, **listed})
        super().__init__(content, status, dict(headers or {}), PROBLEM)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not path.startswith(f"{OPENAI_PREFIX}/"):
            await super().__call__(scope, receive, send)
            return
        kept = ("content-type", "content-length")
        headers = {name: value for name, value in self.headers.items() if name not in kept}
        answer = Response(orjson.dumps(self._openai), self.status_code, headers, "application/json")
        await answer(scope, receive, send)


def problem(
    status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Make the response of an error that has no class of its own."""
    return ErrorResponse(status, code, detail, headers)


def openai_error(
    status: int, code: str, detail: str, errors: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    """Make the error that OpenAI's clients read; `param` names the first invalid option."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    _, *path = errors[0]["where"].split(".") if errors else [""]
    param = path[0] if path else None
    return {"error": {"message": detail, "type": kind, "param": param, "code": code}}


async def on_embedder_error(_: Request, error: Exception) -> Response:
    """Answer an error of our own: the client caused it, or the server lacks something."""
    assert isinstance(error, EmbedderError)
    return of_error(error)


def of_error(error: EmbedderError) -> Response:
    """Make the response of one of our errors."""
    status = STATUS[type(error)]
    detail, headers = str(error), getattr(error, "headers", None)
    if isinstance(error, WeightsError):  # its message names paths of this machine
        _log.error("%s", error)
        detail = "this model cannot be loaded here at present; the server's log says why"
        headers = {"retry-after": str(RETRY_SECONDS)}
    return problem(status, error.code, detail, headers)


async def on_http_exception(_: Request, error: Exception) -> Response:
    """Answer an error of the framework: no such path, a wrong method, ..."""
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return problem(error.status_code, code, str(error.detail), error.headers)


async def on_invalid_request(_: Request, error: Exception) -> Response:
    """Answer an option or a JSON body that does not fit its schema."""
    assert isinstance(error, RequestValidationError)
    faults = [
        {"where": ".".join(map(str, fault["loc"])), "what": fault["msg"]}
        for fault in error.errors()[:MAX_FAULTS]
    ]
    detail = "; ".join(f"{fault['where']}: {fault['what']}" for fault in faults)
    return ErrorResponse(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", detail, errors=faults)


def install(app: FastAPI) -> None:
    """Make this application answer every error in one of the two forms."""
    app.add_exception_handler(EmbedderError, on_embedder_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
