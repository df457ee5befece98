"""A way to close a connection so that its last answer still reaches the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

LINGER_BYTES: Final = 64 << 20
LINGER_SECONDS: Final = 5.0
SEND_SECONDS: Final = 60.0


class LingeringTransport:
    """A transport that lets a client finish sending before it closes the connection.

    When a socket is closed while data arrives, the kernel sends a reset, and after a reset the
    client often cannot read the answer any more. Therefore only the sending direction is closed at
    first. What still arrives is thrown away, up to `LINGER_BYTES` and for up to `LINGER_SECONDS`.

    `sending()` tells whether the client is still sending.
    """

    def __init__(self, transport: asyncio.Transport, sending: Callable[[], bool]) -> None:
        self._transport = transport
        self._sending = sending
        self._lingering = False
        self._left = LINGER_BYTES

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._lingering or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send the data, unless the sending direction is closed."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close; a client that goes on sending, or does not read the answer, is cut off later."""
        if self.is_closing():
            return
        loop = asyncio.get_running_loop()
        if self._sending() and self._transport.can_write_eof():
            self._lingering = True
            self._transport.write_eof()
            self._transport.resume_reading()
            loop.call_later(LINGER_SECONDS, self._transport.abort)
            return
        if self._transport.get_write_buffer_size():
            loop.call_later(SEND_SECONDS, self._transport.abort)
        self._transport.close()

    def discard(self, data: bytes) -> bool:
        """Return whether these bytes came after the end and must be ignored."""
        if self._lingering:
            self._left -= len(data)
            if self._left < 0:
                self._transport.abort()
        return self.is_closing()
