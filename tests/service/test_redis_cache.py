"""The cache in redis: far away, crowded, or talking nonsense, it never fails a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from service.cache import Unavailable
from service.redis_cache import CONNECTIONS, Breaker, RedisCache
from tests.redis_kit import needs_redis, redis_server
from tests.service_kit import eventually, fake_app, free_port, running, wav

pytestmark = pytest.mark.anyio
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class TinyRedis:
    """GET, SET and, `greeting` seconds late, whatever a client says before.

    `answer` replaces the answer to GET.
    """

    def __init__(self, delay: float = 0.0, greeting: float = 0.0, answer: bytes | None = None):
        self.delay = delay
        self.greeting = greeting
        self.answer = answer
        self.values: dict[bytes, bytes] = {}
        self.connections = 0
        self.commands: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        loop = asyncio.get_running_loop()
        try:
            while command := await _command(reader):
                self.commands.append(command[0].upper())
                late = self.delay if command[0].upper() in (b"GET", b"SET") else self.greeting
                loop.call_later(late, writer.write, self._reply(command))
        finally:
            writer.close()

    def _reply(self, command: list[bytes]) -> bytes:
        name = command[0].upper()
        if name == b"GET":
            if self.answer is not None:
                return self.answer
            value = self.values.get(command[1])
            return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)
        if name == b"SET":
            self.values[command[1]] = command[2]
        return b"+OK\r\n"


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    """One command as clients send it; empty at the end."""
    try:
        head = await reader.readuntil(b"\r\n")
        parts = []
        for _ in range(int(head[1:])):
            size = int((await reader.readuntil(b"\r\n"))[1:])
            parts.append((await reader.readexactly(size + 2))[:-2])
        return parts
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        return []


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    """A port where this answers; every connection is closed at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await handler(reader, writer)

    server = await asyncio.start_server(noted, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The URL of something that listens like a redis."""
    async with listening(handler) as port:
        yield f"redis://127.0.0.1:{port}/3"  # a database of its own costs a round trip more


@asynccontextmanager
async def cache_at(
    url: str, timeout: float = 0.25, connecting: float = 10, breaker: Breaker | None = None
) -> AsyncIterator[RedisCache]:
    cache = RedisCache(url, timeout, 60, connecting, breaker or Breaker(pause=3600))
    try:
        yield cache
    finally:
        await cache.close()


async def test_a_redis_is_used_although_connecting_takes_longer_than_a_request_waits() -> None:
    redis = TinyRedis(greeting=1.5)
    async with serving(redis) as url, cache_at(url) as cache:
        with pytest.raises(Unavailable):
            await cache.get("key")
        await eventually(lambda: not cache.connecting)
        assert await cache.get("key") is None  # asked, although the breaker never closes again
        cache.put("key", b"value")
        await eventually(lambda: redis.values)
        assert await cache.get("key") == b"value"
        assert redis.connections == 1


async def test_while_connecting_takes_long_nobody_else_waits_for_it() -> None:
    redis = TinyRedis(greeting=3600)
    async with serving(redis) as url, cache_at(url, timeout=0.5, connecting=60) as cache:
        with pytest.raises(Unavailable):
            await cache.get("key")
        async with asyncio.timeout(30):  # if each waited, it would take 100 s
            for _ in range(200):
                with pytest.raises(Unavailable):
                    await cache.get("key")
        assert redis.connections == 1


GARBAGE = {
    "another type": b":5\r\n",
    "a list": b"*1\r\n$1\r\na\r\n",
    "a list in a list": b"*1\r\n" * 5000 + b":1\r\n",
    "no protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no number": b":five\r\n",
    "no length": b"$five\r\n",
    "a negative length": b"$-7\r\n",
    "not UTF-8": b"+\xff\xfe\r\n",
    "another error": b"-ERR \xff\r\n",
    "wrong type": b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
    "moved": b"-MOVED 3999 127.0.0.1:6381\r\n",
    "no password": b"-NOAUTH Authentication required.\r\n",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "a damaged value": b"$4\r\nEMBV\r\n",
}


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=list(GARBAGE))
async def test_garbage_from_redis_never_fails_a_request(answer: bytes) -> None:
    async with serving(TinyRedis(answer=answer)) as url:
        app = fake_app(redis_url=url)
        async with running(app) as client:
            for seed in range(5):
                response = await client.post("/embed", content=wav(seed=seed))
                assert response.status_code == 200
                assert response.headers["x-cache"] in ("bypass", "miss")


async def test_a_password_that_redis_asks_for_is_a_bypass() -> None:
    class Closed(TinyRedis):
        def _reply(self, _: list[bytes]) -> bytes:
            return b"-NOAUTH Authentication required.\r\n"

    async with serving(Closed()) as url, running(fake_app(redis_url=url)) as client:
        for seed in range(5):
            response = await client.post("/embed", content=wav(seed=seed))
            assert (response.status_code, response.headers["x-cache"]) == (200, "bypass")


async def test_a_crowd_shares_the_connections_and_does_not_count_as_a_failure() -> None:
    redis = TinyRedis(delay=0.02)
    breaker = Breaker(pause=3600)
    async with serving(redis) as url, cache_at(url, timeout=0.2, breaker=breaker) as cache:
        lookups = (cache.get("key") for _ in range(1000))
        results = await asyncio.gather(*lookups, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), Unavailable}
        assert redis.connections <= CONNECTIONS
        assert not breaker.open
        await eventually(lambda: not cache.connecting)
        assert await cache.get("key") is None


async def test_connections_that_redis_closed_are_made_anew() -> None:
    redis = TinyRedis()
    writers: list[asyncio.StreamWriter] = []

    async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await redis(reader, writer)

    breaker = Breaker(pause=3600)
    async with serving(noted) as url, cache_at(url, breaker=breaker) as cache:
        await asyncio.gather(*(cache.get("key") for _ in range(8)))
        for writer in writers:
            writer.close()
            await writer.wait_closed()
        with pytest.raises(Unavailable):
            await cache.get("key")
        assert await cache.get("key") is None
        assert not breaker.open


@asynccontextmanager
async def far_away(port: int, seconds: float) -> AsyncIterator[int]:
    """A port behind which another one is, so many seconds away in each direction."""
    loop = asyncio.get_running_loop()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                loop.call_later(seconds, writer.write, data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, back), carry(there, writer))
        await back.wait_closed()

    async with listening(connect) as distant:
        yield distant


@needs_redis
async def test_a_redis_50_ms_away_is_used_by_default(tmp_path: Path) -> None:
    port = free_port()
    with redis_server(tmp_path, port):
        async with far_away(port, 0.05) as distant:
            app = fake_app(redis_url=f"redis://127.0.0.1:{distant}/0")
            async with running(app) as client:
                for _ in range(100):
                    answer = await client.post("/embed", content=wav())
                    assert answer.status_code == 200
                    if answer.headers["x-cache"] == "hit":
                        return
                    await asyncio.sleep(0.1)
    raise AssertionError("never a hit")
