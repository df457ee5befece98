"""The outermost layer: it limits each body in size and time, and answers unexpected errors.

This is plain ASGI, because Starlette's BaseHTTPMiddleware takes as long as a cache hit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Final

from anyio import CancelScope, move_on_after
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTimeout, BodyTooLarge, of_error, problem
from service.limits import Memory
from service.metrics import Metrics

TIMINGS: Final = "embedder.timings"  # key of the scope: {stage: seconds}, for Server-Timing
DRAIN_BYTES: Final = 1 << 20
_GONE: Final = 499  # nginx's status for clients that hung up
_log = logging.getLogger(__name__)


class Body:
    """The body of one request, received within its limit and the memory that all bodies share.

    A complete body stops the clock. One clock measures the whole body, because setting one for
    every message takes as long as receiving it.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int, clock: CancelScope) -> None:
        self._receive = receive
        self._limit = limit
        self._clock = clock
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self._announced = int(length) if length.isdigit() else 0
        self._expects = b"expect" in headers
        self._begun = False
        self._ended = False  # even the empty body of a GET ends with a message
        self.complete = not self._announced and b"transfer-encoding" not in headers
        self.size = 0
        if self.complete:
            self.stop_clock()

    async def receive(self, memory: Memory) -> Message:
        """Return the next message of the body; after its end, any message."""
        if self._ended:
            return await self._receive()
        if self._announced > self._limit:
            raise BodyTooLarge(self._limit)
        if not self._begun:
            memory.check(self._announced)  # before any byte of it is read
        self._begun = True
        message = await self._receive()
        chunk = len(message.get("body", b""))
        if self.size + chunk > self._limit:
            raise BodyTooLarge(self._limit)
        memory.take(chunk)
        self.size += chunk
        self._ended = self.complete = not message.get("more_body", False)
        if self.complete:
            self.stop_clock()
        return message

    @property
    def worth_waiting_for(self) -> bool:
        """Whether to keep the connection after an answer that came before the whole body.

        The rest of the body must be short, and on its way: a client that expects "100 Continue"
        and gets an answer instead may never send it.
        """
        if self.complete:
            return True
        return 0 < self._announced <= DRAIN_BYTES and not (self._expects and not self._begun)

    def stop_clock(self) -> None:
        """Stop measuring the time of this body."""
        self._clock.deadline = math.inf


class Guard:
    """Middleware that limits bodies, measures requests, and answers unexpected errors.

    Its own errors are answered outside of the application, so `wrap_errors` adds what the layers
    between would have added to them: CORS headers, without which no page may read an answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        memory: Memory,
        metrics: Metrics,
        body_limit: Callable[[str], int],
        body_seconds: float,
        wrap_errors: Callable[[ASGIApp], ASGIApp] = lambda response: response,
    ) -> None:
        self._app = app
        self._memory = memory
        self._metrics = metrics
        self._body_limit = body_limit
        self._body_seconds = body_seconds
        self._wrap_errors = wrap_errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        clock = move_on_after(self._body_seconds)
        body = Body(scope, receive, self._body_limit(scope["path"]), clock)
        timings: dict[str, float] = {}
        scope[TIMINGS] = timings
        status = 0

        async def timed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                body.stop_clock()  # it would cancel the answer
                value = server_timing({**timings, "total": time.perf_counter() - started})
                message["headers"] = [*message["headers"], (b"server-timing", value)]
                if not body.worth_waiting_for:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            with clock:
                await self._app(scope, lambda: body.receive(self._memory), timed_send)
            if clock.cancelled_caught:
                late = self._wrap_errors(of_error(BodyTimeout(self._body_seconds)))
                await late(scope, receive, timed_send)
        except ClientDisconnect:
            status = status or _GONE
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise
            bug = problem(500, "internal_error", "an error of this server; its log says more")
            await self._wrap_errors(bug)(scope, receive, timed_send)
        finally:
            self._memory.give_back(body.size)
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - started
            self._metrics.request(route, scope["method"], status or _GONE, seconds)


def server_timing(timings: dict[str, float]) -> bytes:
    """Return the value of the header Server-Timing: stages in milliseconds."""
    return ", ".join(f"{name};dur={1000 * s:.2f}" for name, s in timings.items()).encode()
