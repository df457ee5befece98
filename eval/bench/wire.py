"""Raw HTTP, one connection for each exchange.

A request need not be valid; of an answer, the bytes are counted and only the beginning is kept.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

SECONDS: Final = 60.0  # longest exchange
LIMIT_BYTES: Final = 256 << 20  # the client hangs up if an answer is longer
_CHUNK: Final = 1 << 18
_HEAD_BYTES: Final = 1 << 16
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

Pieces = Iterable[bytes]


@dataclass(frozen=True, slots=True)
class Reply:
    """How one exchange ended.

    `status` is 0 if none came. `end` is "whole", or says why the answer is not whole: "cut" (closed
    too early), "reset", "refused", "late" (no end in time), or "long" (more than the client reads).
    """

    status: int
    end: str
    seconds: float
    received: int
    start: bytes = b""  # the beginning of head and body

    @property
    def name(self) -> str:
        """The status, followed by `end` if the answer is not whole."""
        status = str(self.status or "no answer")
        return status if self.end == "whole" else f"{status} {self.end}"


def request(
    port: int,
    target: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> bytes:
    """Return the bytes of a request that asks the server to close the connection after it."""
    named = {
        "Host": f"127.0.0.1:{port}",
        "Connection": "close",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    lines = [f"{method} {target} HTTP/1.1", *(f"{key}: {value}" for key, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def exchange(port: int, pieces: Pieces, seconds: float = SECONDS) -> Reply:
    """Send pieces until all are sent or the answer ends; read the answer to its end."""
    counter = _Counter()
    started = time.perf_counter()
    try:
        await asyncio.wait_for(_exchange(port, pieces, counter), seconds)
    except TimeoutError:
        counter.end = "late"
    except ConnectionRefusedError:
        counter.end = "refused"
    except OSError:
        counter.end = "whole" if counter.complete else "reset"
    spent = time.perf_counter() - started
    return Reply(counter.status, counter.end, spent, counter.received, bytes(counter.head))


async def hang_up(port: int, pieces: Pieces, seconds: float) -> None:
    """Send all pieces, wait so many seconds, and close the connection without reading."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.wait_for(_send(writer, pieces), SECONDS)
        await asyncio.sleep(seconds)
    except (TimeoutError, OSError):
        pass
    finally:
        writer.transport.abort()


class _Counter:
    """The answer so far: its length is counted, only its beginning and its end are kept."""

    def __init__(self) -> None:
        self.received = 0
        self.end = "cut"
        self.head = bytearray()
        self._tail = b""

    def take(self, data: bytes) -> None:
        self.received += len(data)
        self.head += data[: _HEAD_BYTES - len(self.head)]
        self._skip_interim()
        self._tail = (self._tail + data)[-5:]

    def _skip_interim(self) -> None:
        """Drop a whole "100 Continue", which comes before the answer."""
        size = self.head.find(b"\r\n\r\n") + 4
        if size >= 4 and self.status // 100 == 1:
            del self.head[:size]
            self.received -= size

    @property
    def status(self) -> int:
        match = _STATUS.match(self.head)
        return int(match[1]) if match else 0

    @property
    def complete(self) -> bool:
        """Whether the body is as long as the head says, or ends with the last chunk."""
        size = self.head.find(b"\r\n\r\n")
        if size < 0:
            return False
        length = _LENGTH.search(self.head, 0, size + 2)
        if length:
            return self.received - size - 4 >= int(length[1])
        return self._tail == b"0\r\n\r\n"


async def _exchange(port: int, pieces: Pieces, counter: _Counter) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.create_task(_send(writer, pieces))
    try:
        while data := await reader.read(_CHUNK):
            counter.take(data)
            if counter.received > LIMIT_BYTES:
                counter.end = "long"
                return
            if counter.complete:
                break
        counter.end = "whole" if counter.complete else "cut"
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, pieces: Pieces) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)  # lets the reader see an answer that comes early
