"""Keys, values, the in-process cache, single flights and the circuit breaker."""

from __future__ import annotations

import asyncio
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.cache import MemoryCache, NoCache, Unavailable, decode, digest, encode, result_key
from service.redis_cache import Breaker
from service.singleflight import SingleFlight
from tests.service_kit import eventually

VALUE = np.arange(6, dtype=np.float32).reshape(2, 3)


@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0)))
def test_what_is_encoded_is_decoded_bit_by_bit(array: np.ndarray) -> None:
    back = decode(encode(array))
    assert back is not None
    assert back.dtype == np.float32
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(st.integers(0, len(encode(VALUE)) - 1), st.integers(1, 255))
def test_one_flipped_byte_anywhere_is_a_miss_or_harmless(position: int, mask: int) -> None:
    damaged = bytearray(encode(VALUE))
    damaged[position] ^= mask
    back = decode(bytes(damaged))
    assert back is None or (position == 7 and np.array_equal(back, VALUE))  # 7: padding


@given(st.binary(max_size=200))
def test_anything_else_in_the_store_is_a_miss(junk: bytes) -> None:
    assert decode(junk) is None
    assert decode(encode(VALUE)[: len(junk)]) is None
    assert decode(encode(VALUE) + junk + b"x") is None


@pytest.mark.parametrize("value", [None, "EMBV", 7, [], b"", memoryview(encode(VALUE))[:5]])
def test_what_is_no_value_at_all_is_a_miss(value: object) -> None:
    assert decode(value) is None


def test_a_value_larger_than_any_that_is_stored_is_a_miss() -> None:
    assert decode(encode(VALUE), VALUE.nbytes) is not None
    assert decode(encode(np.zeros(1000, np.float32)), VALUE.nbytes) is None


def test_a_forged_shape_is_a_miss() -> None:
    value = encode(VALUE)
    for shape in ((3, 2), (6, 1), (2**31, 2**31), (1, 3)):
        assert decode(value[:12] + struct.pack("<2I", *shape) + value[20:]) is None


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_two_lists_of_fields_never_run_together(one: list[str], other: list[str]) -> None:
    assert (digest(one) == digest(other)) == (one == other)


def test_every_part_of_a_question_is_part_of_the_key() -> None:
    keys = {
        result_key(b"pcm", ("mn04", "hash"), ("embedding", "scene")),
        result_key(b"pcn", ("mn04", "hash"), ("embedding", "scene")),
        result_key(b"pcm", ("mn05", "hash"), ("embedding", "scene")),
        result_key(b"pcm", ("mn04", "hasi"), ("embedding", "scene")),
        result_key(b"pcm", ("mn04", "hash"), ("tags", "scene")),
        result_key(b"pcm", ("mn04", "hash", "embedding"), ("scene",)),
    }
    assert len(keys) == 6


@pytest.mark.anyio
async def test_the_least_recently_used_goes_first_and_bytes_are_bounded() -> None:
    cache = MemoryCache(3300)
    for name in "abc":
        cache.put(name, b"x" * 700)
    assert await cache.get("a") is not None  # now b is the oldest
    cache.put("d", b"x" * 700)
    assert [await cache.get(name) is not None for name in "abcd"] == [True, False, True, True]
    cache.put("huge", b"x" * 3300)
    assert await cache.get("huge") is None
    for number in range(1000):
        cache.put(str(number), b"x" * (number % 50))
        assert cache.held <= 3300


@pytest.mark.anyio
async def test_replacing_a_value_does_not_leak_its_size() -> None:
    cache = MemoryCache(3300)
    for _ in range(100):
        cache.put("a", b"x" * 1000)
    cache.put("b", b"y" * 1000)
    assert await cache.get("a") == b"x" * 1000


@pytest.mark.anyio
async def test_no_cache_says_so() -> None:
    cache = NoCache()
    cache.put("a", b"x")
    with pytest.raises(Unavailable):
        await cache.get("a")


class Work:
    """Counts its runs and waits to be let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = False
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.runs += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return self.runs


@pytest.mark.anyio
async def test_the_first_ones_leaving_does_not_disturb_the_others() -> None:
    flights: SingleFlight[int] = SingleFlight()
    work = Work()
    tasks = [asyncio.ensure_future(flights.join("key", work)) for _ in range(3)]
    await eventually(lambda: work.runs == 1)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    work.go.set()
    assert await asyncio.gather(*tasks[1:]) == [1, 1]
    assert len(flights) == 0
    assert await flights.join("key", work) == 2  # what has landed is not remembered


@pytest.mark.anyio
async def test_work_that_nobody_waits_for_is_given_up() -> None:
    flights: SingleFlight[int] = SingleFlight()
    work = Work()
    tasks = [asyncio.ensure_future(flights.join("key", work)) for _ in range(2)]
    await eventually(lambda: work.runs == 1)
    for task in tasks:
        task.cancel()
    await eventually(lambda: work.cancelled)
    assert len(flights) == 0
    again = asyncio.ensure_future(flights.join("key", work))
    await eventually(lambda: work.runs == 2)
    work.go.set()
    assert await again == 2


@pytest.mark.anyio
async def test_an_error_is_everybodys_and_is_not_remembered() -> None:
    flights: SingleFlight[int] = SingleFlight()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise ValueError("once")

    results = await asyncio.gather(
        *(flights.join("key", fail) for _ in range(3)), return_exceptions=True
    )
    assert [str(result) for result in results] == ["once"] * 3
    assert len(flights) == 0


def test_the_breaker_opens_after_failures_in_a_row_and_tries_again_later() -> None:
    now = 0.0
    breaker = Breaker(failures=2, pause=10, clock=lambda: now)
    breaker.failure()
    breaker.success()
    breaker.failure()
    assert not breaker.open
    breaker.failure()
    assert breaker.open
    now = 10.5
    assert not breaker.open  # one trial
    breaker.failure()
    assert breaker.open
    now = 21
    breaker.success()
    assert not breaker.open
