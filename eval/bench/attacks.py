"""Attacks on a server: what each sends, and what it may cost.

Each is sent to a new server. Its answers are read and thrown away, up to a limit.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from eval.bench import flac, matroska
from eval.bench.material import RATE, clip, encoded, wav_head
from eval.bench.wire import Reply, exchange, hang_up, request

LENGTH: Final = 590.0  # seconds; servers take clips of up to 600
NPY: Final = {"Accept": "application/x-npy"}
JSON: Final = {"Content-Type": "application/json"}
_REFUSED: Final = frozenset({400, 413})
_TAPS: Final = ("mel", *(f"b{number}" for number in range(15)), "clf1", "clf2")


@dataclass(frozen=True, slots=True)
class Target:
    """The server under attack; `models` are those that it serves, the default first."""

    port: int
    models: Sequence[str]
    scale: float = 1.0  # multiplies counts and sizes; tests use a small one

    def many(self, count: int) -> int:
        """Return a count at this scale, at least 1."""
        return max(1, round(count * self.scale))

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Send one POST request."""
        return await exchange(self.port, [request(self.port, path, body, headers)])


@dataclass(frozen=True, slots=True)
class Bound:
    """What an attack may cost.

    The status 0 stands for a connection that is closed without an answer.
    """

    statuses: frozenset[int] = _REFUSED
    seconds: float = 5.0  # from a request to the end of its answer
    mib: float = 150.0  # of memory, above what the server has when it is ready
    stall: float = 0.5  # longest time without an answer of /livez [s]
    threads: int = 12  # above those of the server when it is ready
    disk_mib: float = 20.0  # in the folder of caches

    def __str__(self) -> str:
        statuses = "/".join(str(status or "closed") for status in sorted(self.statuses))
        return f"{statuses}; {self.seconds:g} s; {self.mib:g} MiB; stall {self.stall:g} s"


Send = Callable[[Target], Awaitable[list[Reply]]]


@dataclass(frozen=True, slots=True)
class Attack:
    """One row of the table; `two_models` if the server must serve two."""

    name: str
    send: Send
    bound: Bound = Bound()
    two_models: bool = False


def material() -> None:
    """Make the files that attacks share, before time is measured."""
    silence()
    _short(0)


@cache
def silence() -> bytes:
    """Return a FLAC file of LENGTH seconds of silence."""
    return flac.seconds(LENGTH, RATE)


@cache
def _short(seed: int) -> bytes:
    return encoded(clip(seed, 1.0), "wav")


def _mels(count: int, kind: str, sound: Callable[[], bytes], form: Mapping[str, str]) -> Send:
    async def send(target: Target) -> list[Reply]:
        taps = ",".join(["mel"] * target.many(count))
        return [await target.post(f"/embed?kind={kind}&taps={taps}", sound(), form)]

    return send


async def _every_tap(target: Target) -> list[Reply]:
    path = f"/embed?kind=timestamps&hop_ms=30&taps={','.join(_TAPS)}"
    return [await target.post(path, silence(), NPY)]


def _numbers(count: int) -> Send:
    async def send(target: Target) -> list[Reply]:
        body = json.dumps({"input": [1] * target.many(count)}, separators=(",", ":"))
        return [await target.post("/v1/embeddings", body.encode(), JSON)]

    return send


async def _endless_headers(target: Target) -> list[Reply]:
    head = b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % target.port
    block = b"a: b\r\n" * 10_000
    pieces = itertools.chain([head], itertools.repeat(block, target.many(3_400)))  # 200 MB
    return [await exchange(target.port, pieces)]


async def _many_headers(target: Target) -> list[Reply]:
    headers = {f"x-{number}": "1" for number in range(target.many(10_000))}
    return [await target.post("/tags", _short(0), headers)]


async def _trailers(target: Target) -> list[Reply]:
    head = (
        f"POST /tags HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\nConnection: close\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    body = _short(0)
    start = head.encode() + b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    block = b"x-trailer: 1\r\n" * 10_000
    count = target.many(150)  # 20 MB
    return [await exchange(target.port, [start, *[block] * count, b"\r\n"])]


async def _hung_up(target: Target) -> list[Reply]:
    """Send long uploads whose clients hang up; return the answer to an ordinary request after."""
    size = target.many(20_000_000)

    async def upload(number: int) -> None:
        # Each upload has samples of another value: none is answered from the cache.
        body = wav_head(size) + struct.pack("<h", number) * (size // 2)
        await hang_up(target.port, [request(target.port, "/embed", body)], 0.4)

    for first in range(0, 60, 6):
        await asyncio.gather(*(upload(number) for number in range(first, first + 6)))
    last = request(target.port, "/tags", _short(1))
    return [await exchange(target.port, [last], 120)]


async def _many_lengths(target: Target) -> list[Reply]:
    draw = random.Random(0)
    lengths = [draw.uniform(0.1, 10) for _ in range(target.many(300))]
    deadline = time.monotonic() + 120
    replies: list[Reply] = []
    for number, length in enumerate(lengths):
        if time.monotonic() > deadline:
            break
        sound = encoded(clip(number, length), "wav")
        replies += [await target.post(f"/embed?model={model}", sound) for model in target.models]
    return replies


async def _sets_of_taps(target: Target) -> list[Reply]:
    sets = itertools.islice(itertools.combinations(_TAPS, 3), target.many(20))
    return [
        await target.post(f"/embed?taps={','.join(taps)}", _short(number))
        for number, taps in enumerate(sets)
    ]


def _tags(query: str) -> Send:
    async def send(target: Target) -> list[Reply]:
        return [await target.post(f"/tags?{query}", silence())]

    return send


async def _burner(target: Target) -> list[Reply]:
    return [await target.post("/tags", matroska.backwards(target.many(800_000)))]


async def _tiny_frames(target: Target) -> list[Reply]:
    return [await target.post("/tags", flac.constant(target.many(1_000_000), 192_000, block=16))]


ATTACKS: Final = (
    Attack(
        "taps=mel ×1000, timestamps of 590 s",
        _mels(1000, "timestamps", silence, NPY),
    ),
    Attack(
        "taps=mel ×100, timestamps of a file of 276 bytes",
        _mels(100, "timestamps", lambda: flac.constant(18, 8_000), NPY),
    ),
    Attack(
        "taps=mel ×600: a scene of 76 800 values",
        _mels(600, "scene", lambda: _short(0), {}),
        Bound(_REFUSED | {200}),
    ),
    Attack(
        "18 different taps, timestamps of 590 s, every 30 ms",
        _every_tap,
        Bound(_REFUSED | {200}, 60, 600),  # the answer takes 116 MiB of it, the audio 76
    ),
    Attack("/v1/embeddings of 200 000 numbers, 400 kB", _numbers(200_000), Bound(_REFUSED | {422})),
    Attack(
        "/v1/embeddings of 5 000 000 numbers, 10 MB", _numbers(5_000_000), Bound(_REFUSED | {422})
    ),
    Attack("200 MB of short headers", _endless_headers, Bound(frozenset({0, 400, 431}))),
    Attack("10 000 headers", _many_headers, Bound(frozenset({0, 400, 431}))),
    Attack("20 MB of trailers", _trailers, Bound(frozenset({0, 400, 413, 431}))),
    Attack(
        "60 uploads of 20 MB hung up after 0.4 s, then a clip of 1 s",
        _hung_up,
        Bound(frozenset({200}), 5, 800, 1, threads=24),
    ),
    Attack(
        "clips of 300 lengths with two models",
        _many_lengths,
        Bound(frozenset({200}), 10, 350, 1),  # MiB include the second model
        two_models=True,
    ),
    Attack("20 sets of taps", _sets_of_taps, Bound(frozenset({200}), 60, 60, 1, 12, 5)),
    Attack(
        "/tags?kind=timestamps&top_k=527 of 590 s, every 30 ms",
        _tags("kind=timestamps&window_ms=160&hop_ms=30&top_k=527"),
        Bound(_REFUSED | {200}, 60, 400),
    ),
    Attack("14 MB whose index takes minutes to read", _burner, Bound(frozenset({413}), 15, 800)),
    Attack(
        "16 MB of FLAC frames of 16 samples", _tiny_frames, Bound(frozenset({200, 413}), 15, 300)
    ),
)
