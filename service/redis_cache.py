"""The cache in redis: never waited for long, never needed.

A lookup that fails or takes too long is Unavailable; after a few in a row redis is left alone
for a while (a circuit breaker), so that a dead server costs nothing but the cache's absence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from anyio import fail_after
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.cache import Unavailable

CONNECTIONS: Final = 32
MAX_UNWRITTEN: Final = 64 << 20  # bytes; more than that is not stored at all
_FAILURES: Final = (RedisError, OSError, TimeoutError)
_CLOSE_SECONDS: Final = 1.0

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Breaker:
    """Open after `failures` in a row, for `pause` seconds; then one success closes it."""

    failures: int = 3
    pause: float = 2.0
    clock: Callable[[], float] = time.monotonic
    _failed: int = 0
    _open_until: float = 0.0

    @property
    def open(self) -> bool:
        """Whether to leave the other side alone now."""
        return self._failed >= self.failures and self.clock() < self._open_until

    def success(self) -> None:
        """The other side answered."""
        self._failed = 0

    def failure(self) -> None:
        """It did not."""
        self._failed += 1
        self._open_until = self.clock() + self.pause


class RedisCache:
    """A `Cache` in redis; `timeout` and `ttl` are in seconds."""

    def __init__(self, url: str, timeout: float, ttl: int, breaker: Breaker | None = None) -> None:
        self._timeout = timeout
        self._ttl = ttl
        self._breaker = breaker or Breaker()
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._unwritten: deque[tuple[str, bytes]] = deque()
        self._unwritten_bytes = 0
        self._writer: asyncio.Task[None] | None = None

    async def get(self, key: str) -> bytes | None:
        """The value; Unavailable where redis does not answer in time."""
        value = await self._ask(lambda: self._redis.get(key))
        return value.encode() if isinstance(value, str) else value

    def put(self, key: str, value: bytes) -> None:
        """Leave it to the writer, off the request's path."""
        if self._breaker.open or self._unwritten_bytes + len(value) > MAX_UNWRITTEN:
            return
        self._unwritten.append((key, value))
        self._unwritten_bytes += len(value)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what waits, for at most a second, and disconnect."""
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=_CLOSE_SECONDS)
            self._writer.cancel()
        await self._redis.aclose()

    async def _write(self) -> None:
        while self._unwritten:
            key, value = self._unwritten.popleft()
            self._unwritten_bytes -= len(value)
            with contextlib.suppress(Unavailable):
                await self._set(key, value)

    async def _set(self, key: str, value: bytes) -> None:
        ttl = round(self._ttl * random.uniform(0.9, 1.1))  # so that not all expire at once
        await self._ask(lambda: self._redis.set(key, value, ex=ttl))

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T:
        if self._breaker.open:
            raise Unavailable
        try:
            with fail_after(self._timeout):
                answer = await command()
        except _FAILURES as error:
            self._breaker.failure()
            if self._breaker.open:
                _log.warning("redis does not answer (%s); going on without it", _kind(error))
            raise Unavailable from error
        self._breaker.success()
        return answer


def _kind(error: Any) -> str:
    return type(error).__name__
