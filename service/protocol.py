"""uvicorn's HTTP protocol with a deadline for request heads, which uvicorn has not."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS: Final = 20.0


class HeadDeadline(HttpToolsProtocol):
    """Closes connections that do not finish a request's head in time.

    From its completion on, the application has a deadline for the body; between requests,
    uvicorn has one for idle connections.
    """

    head_seconds = HEAD_SECONDS
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is due."""
        super().connection_made(transport)
        self._arm()

    def on_message_begin(self) -> None:
        """The parser saw the first byte of a request."""
        self._arm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._disarm()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """No connection, no deadline."""
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self.head_seconds, self.timeout_keep_alive_handler
            )

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
