"""Closing a connection so that its last answer arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

LINGER_BYTES: Final = 64 << 20
LINGER_SECONDS: Final = 5.0
SEND_SECONDS: Final = 60.0


class LingeringTransport:
    """A transport that, when it closes on a client that still sends, first lets it finish.

    The kernel answers data that nobody reads with a reset, and a reset takes the answer from the
    client before it was read. So this side of the connection ends, and what still comes is thrown
    away, within `LINGER_BYTES` and `LINGER_SECONDS`.
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
        """Send, unless this side has ended."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """End; a client that does not take what was sent, or goes on sending, is cut off."""
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
        """Whether these bytes came too late to matter."""
        if self._lingering:
            self._left -= len(data)
            if self._left < 0:
                self._transport.abort()
        return self.is_closing()
