"""The cache in redis, for which no request waits long.

A lookup that fails or takes too long raises Unavailable. After a few failures in a row, redis is
not asked for a while (a circuit breaker), so that requests lose no time to a dead server.
Connecting takes several round trips. It has a time limit of its own, and continues when the
request that began it stops waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from anyio import fail_after
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Disconnected

from service.cache import Unavailable

CONNECTIONS: Final = 32
MAX_UNWRITTEN: Final = 64 << 20  # bytes; more than that is not stored at all
_CLOSE_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Breaker:
    """A circuit breaker: `failures` in a row open it for `pause` seconds, a success closes it."""

    failures: int = 3
    pause: float = 2.0
    clock: Callable[[], float] = time.monotonic
    _failed: int = 0
    _open_until: float = 0.0

    @property
    def open(self) -> bool:
        """Whether the server should not be asked now."""
        return self._failed >= self.failures and self.clock() < self._open_until

    def success(self) -> None:
        """Note that the server answered."""
        self._failed = 0

    def failure(self) -> None:
        """Note that the server did not answer."""
        self._failed += 1
        self._open_until = self.clock() + self.pause


class _Connections:
    """Up to CONNECTIONS connections to a server, each made in a task of its own when it is needed.

    A request that stops waiting does not cancel the connection: the next request gets it.
    redis-py's own pool connects within the request, so that a request that gives up after a few
    milliseconds would throw the connection away and none would ever be ready.
    """

    def __init__(self, url: str, connecting: float, failed: Callable[[Exception], None]) -> None:
        self._pool = ConnectionPool.from_url(
            url,
            socket_connect_timeout=connecting,
            socket_timeout=connecting,  # for the greeting; `RedisCache` limits what follows
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # version 3 takes one more round trip to agree on
        )
        self._failed = failed
        self._idle: asyncio.LifoQueue[AbstractConnection | None] = asyncio.LifoQueue()
        self._count = 0
        self._waiting = 0
        self._connecting: dict[asyncio.Task[None], float] = {}  # the times of their beginning

    @property
    def connecting(self) -> bool:
        """Whether a connection is being made."""
        return bool(self._connecting)

    async def take(self, patience: float) -> AbstractConnection:
        """A free connection; Unavailable if connecting takes more than `patience` seconds."""
        if self._idle.empty():
            oldest = min(self._connecting.values(), default=math.inf)
            if time.monotonic() - oldest > patience:
                raise Unavailable
            self._begin()
        self._waiting += 1
        try:
            connection = await self._idle.get()
        finally:
            self._waiting -= 1
        if connection is None:
            raise Unavailable
        return connection

    def give_back(self, connection: AbstractConnection) -> None:
        """Keep the connection for the next request, unless it was closed."""
        if connection.is_connected:
            self._idle.put_nowait(connection)
        else:
            self._count -= 1

    async def drop_idle(self) -> None:
        """Disconnect the idle ones: when a server closes one connection, it has closed all."""
        while not self._idle.empty():
            connection = self._idle.get_nowait()
            if connection is not None:
                self._count -= 1
                await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """End the connections that are idle or being made."""
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        await self.drop_idle()

    def _begin(self) -> None:
        if self._count < CONNECTIONS:
            self._count += 1
            task = asyncio.create_task(self._connect())
            self._connecting[task] = time.monotonic()
            task.add_done_callback(self._connecting.pop)

    async def _connect(self) -> None:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except Exception as error:
            self._count -= 1
            self._failed(error)
            if self._waiting:
                self._idle.put_nowait(None)
            return
        self._idle.put_nowait(connection)


class RedisCache:
    """A `Cache` in redis.

    Seconds: `timeout` limits a command, `connecting` limits connecting, values live for `ttl`.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        ttl: int,
        connecting: float = 2.0,
        breaker: Breaker | None = None,
    ) -> None:
        self._timeout = timeout
        self._ttl = ttl
        self._breaker = breaker or Breaker()
        self._connections = _Connections(url, connecting, self._failed)
        self._unwritten: deque[tuple[str, bytes]] = deque()
        self._unwritten_bytes = 0
        self._writer: asyncio.Task[None] | None = None

    @property
    def connecting(self) -> bool:
        """Whether a connection is being made."""
        return self._connections.connecting

    async def get(self, key: str) -> bytes | None:
        """The value, or None; Unavailable if redis does not answer in time."""
        value = await self._ask("GET", key)
        if value is None or isinstance(value, bytes):
            return value
        raise Unavailable  # redis answers GET with bytes or nothing

    def put(self, key: str, value: bytes) -> None:
        """Hand the value to the writer task, so that the request does not wait."""
        if self._breaker.open or self._unwritten_bytes + len(value) > MAX_UNWRITTEN:
            return
        self._unwritten.append((key, value))
        self._unwritten_bytes += len(value)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write the waiting values for at most a second, then disconnect."""
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=_CLOSE_SECONDS)
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self._connections.close()

    async def _write(self) -> None:
        while self._unwritten:
            key, value = self._unwritten.popleft()
            self._unwritten_bytes -= len(value)
            with contextlib.suppress(Unavailable):
                await self._set(key, value)

    async def _set(self, key: str, value: bytes) -> None:
        ttl = round(self._ttl * random.uniform(0.9, 1.1))  # so that not all expire at once
        await self._ask("SET", key, value, "EX", ttl)

    async def _ask(self, *command: str | bytes | int) -> object:
        if self._breaker.open:
            raise Unavailable
        try:
            with fail_after(self._timeout):
                connection = await self._connections.take(self._timeout)
        except TimeoutError as error:  # many requests wait for connections: no failure of redis
            raise Unavailable from error
        try:
            with fail_after(self._timeout):
                answer = await self._answer(connection, command)
        except Exception as error:  # no error of the cache may fail a request
            self._failed(error)
            if isinstance(error, Disconnected):
                await self._connections.drop_idle()
            raise Unavailable from error
        self._breaker.success()
        return answer

    async def _answer(
        self, connection: AbstractConnection, command: tuple[str | bytes | int, ...]
    ) -> object:
        """Send a command and read the answer; any error but a refusal closes the connection."""
        try:
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            self._connections.give_back(connection)

    def _failed(self, error: Exception) -> None:
        self._breaker.failure()
        if self._breaker.open:
            _log.warning("redis does not answer (%s); going on without it", _kind(error))


def _kind(error: Any) -> str:
    return type(error).__name__
