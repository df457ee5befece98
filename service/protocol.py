"""uvicorn's HTTP protocol with limits that it lacks: on time, heads, trailers and connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import problem
from service.linger import SEND_SECONDS, LingeringTransport

HEAD_SECONDS: Final = 20.0
MAX_HEAD_BYTES: Final = 32 << 10
MAX_FIELDS: Final = 100
MAX_PIPELINED: Final = 32
MAX_CONNECTIONS: Final = 900  # many systems allow a process 1024 open files


class HeadDeadline(HttpToolsProtocol):
    """Closes connections whose clients do not finish a request's head in time.

    After the head, the application's own deadline for the body counts; between requests, uvicorn's
    deadline for idle connections.
    """

    head_seconds = HEAD_SECONDS
    _head_timer: asyncio.TimerHandle | None = None
    _receiving = False  # whether the last byte of the current request is still to come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first head."""
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Start the deadline when bytes arrive while no request is being answered."""
        super().data_received(data)
        if not self.at_work:
            self._arm()

    def on_message_begin(self) -> None:
        """Start the deadline: a request has begun."""
        self._receiving = True
        self._arm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """End the deadline of the head."""
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._receiving = False
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the deadline again if the rest of an answered request is still to come."""
        super().on_response_complete()
        if self._receiving:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the deadline."""
        self._disarm()
        super().connection_lost(exc)

    @property
    def at_work(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self.head_seconds, self.timeout_keep_alive_handler
            )

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class BoundedHttp(HeadDeadline):
    """Limits what a connection can cost before the application sees a request.

    The bytes of the URL, of header names and of header values are counted as they arrive; so are
    bytes that the parser has not turned into one of these yet. Trailers have the same limit as a
    head; their content is ignored.
    """

    max_connections = MAX_CONNECTIONS
    send_seconds = SEND_SECONDS
    _send_timer: asyncio.TimerHandle | None = None
    _in_head = False
    _ignoring = False  # whether all further bytes of the client are ignored
    _refusal: Response | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ws_protocol_class = None  # this server has no WebSocket
        self._fields = self._counted = self._uncounted = 0
        self.quiet_since = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; beyond the limit, close the one that has been idle longest."""
        lingering = LingeringTransport(transport, lambda: self._receiving or self._ignoring)
        super().connection_made(cast("asyncio.Transport", lingering))
        if len(self.connections) > self.max_connections:
            _idlest(cast("Iterable[BoundedHttp]", self.connections)).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, unless they are ignored; refuse a head that is too large."""
        if cast("LingeringTransport", self.transport).discard(data) or self._ignoring:
            return
        self._uncounted += len(data)
        super().data_received(data)
        if self._uncounted > MAX_HEAD_BYTES and not self._ignoring:
            self._refusal = _HEAD_TOO_LARGE
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Start the counts of a new request."""
        self._fields = self._counted = self._uncounted = 0
        self._in_head = True
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Refused  # answering the last one closes the connection; clients then try again
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count a piece of the URL."""
        self._count(len(url), _URL_TOO_LONG)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a field; pass it on if it belongs to the head, not to the trailers."""
        self._fields += 1
        self._count(len(name) + len(value), _HEAD_TOO_LARGE)
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the counts of what follows the head."""
        self._fields = self._counted = self._uncounted = 0
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass the body on; the application counts its bytes."""
        self._uncounted = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Start the counts of what follows the request."""
        self._uncounted = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note when the connection became idle, unless more requests wait."""
        self.quiet_since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Close the connection unless the client soon reads what is buffered for it."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read enough: it may go on."""
        super().resume_writing()
        self._stop_send_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the deadline for sending."""
        self._stop_send_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse what cannot be parsed, unless the refusal could be taken for another answer."""
        self._ignoring = True
        in_body = self._receiving and not self._in_head
        if self.at_work and not in_body:  # earlier requests are answered first
            self.cycle.keep_alive = False
            return
        if not in_body or (self.at_work and not self.cycle.response_started):
            self.transport.write(_raw(self._refusal or _NOT_HTTP))
        if self.at_work:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: clients that ask for another protocol are simply answered in HTTP/1.1."""

    def _count(self, size: int, refusal: Response) -> None:
        self._counted += size
        if self._counted > MAX_HEAD_BYTES or self._fields > MAX_FIELDS:
            self._refusal = refusal
            raise _Refused

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None


class _Refused(Exception):
    """Raised in a callback to stop the parser."""


def _idlest(connections: Iterable[BoundedHttp]) -> BoundedHttp:
    idle = (each for each in connections if not (each.at_work or each.transport.is_closing()))
    return min(idle, key=lambda each: each.quiet_since)


def _raw(response: Response) -> bytes:
    """Return the bytes that are sent for a response."""
    fields = [*response.raw_headers, (b"connection", b"close")]
    head = b"".join(b"%b: %b\r\n" % field for field in fields)
    return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)


_HEAD_TOO_LARGE: Final = problem(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "head_too_large",
    f"headers or trailers exceed {MAX_FIELDS} fields or {MAX_HEAD_BYTES:,} bytes; send fewer",
)
_URL_TOO_LONG: Final = problem(
    HTTPStatus.REQUEST_URI_TOO_LONG,
    "url_too_long",
    f"the URL exceeds {MAX_HEAD_BYTES:,} bytes; send audio as the request's body",
)
_NOT_HTTP: Final = problem(
    HTTPStatus.BAD_REQUEST, "bad_request", "this is no HTTP/1.1 request; check what sends it"
)
