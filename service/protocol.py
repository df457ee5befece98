"""uvicorn's HTTP protocol with the bounds that it lacks: time, heads, trailers, connections."""

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
MAX_CONNECTIONS: Final = 900  # below the 1024 open files that a process often may have


class HeadDeadline(HttpToolsProtocol):
    """Closes connections that do not finish a request's head in time.

    From its completion on, the application has a deadline for the body; between requests,
    uvicorn has one for idle connections.
    """

    head_seconds = HEAD_SECONDS
    _head_timer: asyncio.TimerHandle | None = None
    _receiving = False  # a request has begun and its last byte has not come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is due."""
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Whatever comes while no request is at work must become one in time."""
        super().data_received(data)
        if not self.at_work:
            self._arm()

    def on_message_begin(self) -> None:
        """The parser saw the first byte of a request."""
        self._receiving = True
        self._arm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is complete."""
        self._receiving = False
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Answered; what is still to come of the request is due as a head is."""
        super().on_response_complete()
        if self._receiving:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """No connection, no deadline."""
        self._disarm()
        super().connection_lost(exc)

    @property
    def at_work(self) -> bool:
        """Whether a request waits for its answer."""
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
    """Bounds what a connection can cost before the application sees a request.

    Names, values and the URL are counted as they come, and so are the bytes of which the parser
    makes none of these yet. Trailers are counted as a head is, and forgotten.
    """

    max_connections = MAX_CONNECTIONS
    send_seconds = SEND_SECONDS
    _send_timer: asyncio.TimerHandle | None = None
    _in_head = False
    _deaf = False  # nothing more is taken from this connection
    _refusal: Response | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ws_protocol_class = None  # there is no WebSocket here
        self._fields = self._counted = self._uncounted = 0
        self.quiet_since = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more connection: beyond the limit, the one that is idle longest makes room."""
        lingering = LingeringTransport(transport, lambda: self._receiving or self._deaf)
        super().connection_made(cast("asyncio.Transport", lingering))
        if len(self.connections) > self.max_connections:
            _idlest(cast("Iterable[BoundedHttp]", self.connections)).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, unless nothing more is taken or too much has come that is no body."""
        if cast("LingeringTransport", self.transport).discard(data) or self._deaf:
            return
        self._uncounted += len(data)
        super().data_received(data)
        if self._uncounted > MAX_HEAD_BYTES and not self._deaf:
            self._refusal = _HEAD_TOO_LARGE
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """A new request, with counts of its own."""
        self._fields = self._counted = self._uncounted = 0
        self._in_head = True
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Refused  # the last of them closes the connection, and the client tries again
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        self._count(len(url), _URL_TOO_LONG)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; one of the trailers is counted alone."""
        self._fields += 1
        self._count(len(name) + len(value), _HEAD_TOO_LARGE)
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """What follows is counted anew."""
        self._fields = self._counted = self._uncounted = 0
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The application counts these."""
        self._uncounted = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Nothing is due any more."""
        self._uncounted = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Idle from now on, unless more requests wait."""
        self.quiet_since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than we send; it has a while for what is buffered."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken that."""
        super().resume_writing()
        self._stop_send_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """No connection, no deadline."""
        self._stop_send_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """The end of what is understood: say so where that can be no other request's answer."""
        self._deaf = True
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
        """Whoever asks for another protocol is answered in this one, and that is no event."""

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
    """The parser stops here."""


def _idlest(connections: Iterable[BoundedHttp]) -> BoundedHttp:
    idle = [one for one in connections if not (one.at_work or one.transport.is_closing())]
    return min(idle, key=lambda connection: connection.quiet_since)


def _raw(response: Response) -> bytes:
    """The response as it goes over the wire."""
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
