"""Clients that send WAV files to a server: raw HTTP over connections that stay open."""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
from dataclasses import dataclass
from typing import Final

from eval.bench.material import RATE, clip, encoded

_TAIL: Final = struct.Struct("<Q")  # the last four samples of a WAV, changed in each request
_SOUNDS: Final = 8  # different clips


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: so many WAV files, over so many connections at once.

    If `alike`, all files are the same; if not, no two are.
    """

    port: int
    seconds: float
    connections: int
    requests: int
    alike: bool = False
    rate: int = RATE


@dataclass(frozen=True, slots=True)
class Answers:
    """When answers ended, how long each took (both in seconds, sorted), and our processor time."""

    ends: list[float]
    latencies: list[float]
    connections: int
    cpu: float

    @property
    def pace(self) -> float:
        """Seconds from one answer to the next while every connection waits for an answer.

        The first and the last answer of each connection are left out: then the server is not full.
        """
        full = self.ends[self.connections : len(self.ends) - self.connections + 1]
        return (full[-1] - full[0]) / (len(full) - 1)

    @property
    def cpu_each(self) -> float:
        """Processor time of the clients for one answer, in seconds."""
        return self.cpu / len(self.latencies)

    def percentile(self, percent: float) -> float:
        """Return the seconds within which so many percent of the answers came."""
        count = len(self.latencies)
        return self.latencies[min(count - 1, int(count * percent / 100))]


def send(load: Load) -> Answers:
    """Send all requests; each connection sends its next one when it has its answer."""
    return asyncio.run(_send(load))


async def _send(load: Load) -> Answers:
    clips = [clip(seed, load.seconds, load.rate) for seed in range(_SOUNDS)]
    sounds = [encoded(wave, "wav", load.rate) for wave in clips]
    numbers = itertools.count(time.time_ns())  # files differ from those of earlier runs, too
    queue = iter(range(load.requests))
    ends: list[float] = []
    latencies: list[float] = []
    first_lines = f"POST /embed HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\n"

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
        for index in queue:
            sound = sounds[0 if load.alike else index % _SOUNDS]
            tail = sound[-_TAIL.size :] if load.alike else _TAIL.pack(next(numbers))
            head = f"{first_lines}Content-Length: {len(sound)}\r\n\r\n"
            started = time.perf_counter()
            writer.writelines([head.encode(), memoryview(sound)[: -_TAIL.size], tail])
            await _answered(reader)
            ends.append(time.perf_counter())
            latencies.append(ends[-1] - started)
        writer.close()

    cpu = time.process_time()
    await asyncio.gather(*(client() for _ in range(load.connections)))
    return Answers(ends, sorted(latencies), load.connections, time.process_time() - cpu)


async def _answered(reader: asyncio.StreamReader) -> None:
    """Read one answer; RuntimeError if its status is not 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    body = await reader.readexactly(length)
    if b" 200 " not in lines[0]:
        raise RuntimeError(f"the server answered {lines[0].decode()}: {body[:200]!r}")
