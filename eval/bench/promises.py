"""What a server promises besides bounded costs; each promise is checked on a new server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from embedder.errors import BadRequest
from eval.bench import flac
from eval.bench.attacks import LENGTH
from eval.bench.launch import Launch, Running, await_ready, server, start
from eval.bench.material import RATE, clip, encoded
from eval.bench.wire import Reply, exchange, request

CAPACITY: Final = 256  # EMBEDDER_MAX_REQUESTS by default
HELD_SECONDS: Final = 10.0  # length of the clips that fill the server
MORE_SECONDS: Final = 2.0  # the requests beyond the capacity are sent within this time
STARTS: Final = 8  # of a server with two workers
ASKED_AFTER_READY: Final = 40  # requests to each of them
SMALL_SECONDS: Final = 20.0  # small clips are sent for so long
_PART: Final = b'Content-Disposition: form-data; name="file"; filename="a.wav"'


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured, and whether the promise was kept."""

    measured: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Promise:
    """One row of the table: its name, what is promised, and the check.

    A check gets how to start the server, and a scale that multiplies its counts.
    """

    name: str
    bound: str
    check: Callable[[Launch, float], Outcome]


def _refusals(launch: Launch, scale: float) -> Outcome:
    """Send as many requests as a server takes, and twice as many while it works on these."""
    capacity = _many(CAPACITY, scale)
    with server(replace(launch, settings={"MAX_REQUESTS": str(capacity)})) as running:
        held = [encoded(clip(seed, HELD_SECONDS), "flac") for seed in range(capacity)]
        more = [encoded(clip(seed, 1.0), "flac") for seed in range(2 * capacity)]
        replies = asyncio.run(_over_capacity(running.port, held, more))
    names = Counter(reply.name for reply in replies)
    times = sorted(reply.seconds for reply in replies if reply.status == 429)
    median, late = _quantile(times, 0.5), _quantile(times, 0.99)
    measured = ", ".join(f"{number}× {name}" for name, number in names.most_common())
    expected = set(names) <= {"200", "429"}
    return Outcome(
        f"{measured}; 429 after p50 {median:.2f} s, p99 {late:.2f} s", expected and late <= 0.2
    )


async def _over_capacity(port: int, held: Sequence[bytes], more: Sequence[bytes]) -> list[Reply]:
    """Send all of `held` at once, then each of `more` a little after the one before.

    Were all sent at once, the client's time to open the connections would count as the server's.
    """
    first = asyncio.create_task(_together(port, held))
    await asyncio.sleep(1)
    others = []
    for sound in more:
        others.append(asyncio.create_task(_together(port, [sound])))
        await asyncio.sleep(MORE_SECONDS / len(more))
    replies = await asyncio.gather(first, *others)
    return [reply for group in replies for reply in group]


async def _together(port: int, sounds: Sequence[bytes]) -> list[Reply]:
    """Send all sounds at once."""
    return await asyncio.gather(
        *(exchange(port, [request(port, "/embed", sound)], 120) for sound in sounds)
    )


def _small_beside_large(launch: Launch, scale: float) -> Outcome:
    """Send clips of half a second, one after the other, beside eight of ten minutes."""
    with server(launch) as running:
        times = sorted(asyncio.run(_beside(running.port, SMALL_SECONDS * scale)))
    median, late = _quantile(times, 0.5), _quantile(times, 0.99)
    text = f"{len(times)} clips: p50 {1000 * median:.0f} ms, p99 {1000 * late:.0f} ms"
    return Outcome(text, late <= 1)


async def _beside(port: int, seconds: float) -> list[float]:
    """Return how long each small clip took while eight clients sent large ones."""
    ended = time.monotonic() + seconds

    async def large(client: int) -> None:
        number = 0
        while time.monotonic() < ended:
            number += 1  # samples of a value not sent before: the cache has no answer
            sound = flac.seconds(LENGTH, RATE, 8 * number + client)
            await exchange(port, [request(port, "/embed", sound)], 120)

    async def small() -> list[float]:
        times: list[float] = []
        while time.monotonic() < ended:
            sound = encoded(clip(len(times), 0.5), "wav")
            reply = await exchange(port, [request(port, "/embed", sound)], 120)
            times.append(reply.seconds)
        return times

    clients = [asyncio.create_task(large(client)) for client in range(8)]
    times = await small()
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return times


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which this share of the others lies; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _exit_status(launch: Launch, _: float) -> Outcome:
    running = start(launch)
    try:
        await_ready(running)
    finally:
        status = running.stop()
    return Outcome(f"exit status {status}", status == 0)


def _two_workers(launch: Launch, scale: float) -> Outcome:
    """Check that, from the first 200 of /readyz on, no worker answers 503."""
    refused = 0
    starts = _many(STARTS, scale)
    for _ in range(starts):
        with server(replace(launch, settings={"WORKERS": "2"})) as running:
            sound = encoded(clip(0, 0.1), "wav")
            replies = asyncio.run(_together(running.port, [sound] * ASKED_AFTER_READY))
            refused += any(reply.status != 200 for reply in replies)
    return Outcome(f"{refused} of {starts} starts were not ready", refused == 0)


def _asked(
    headers: dict[str, str], statuses: frozenset[int], form: bool = False
) -> Callable[[Launch, float], Outcome]:
    """Return a check that sends one upload with these headers and expects one of these statuses.

    The upload is a form if `form`, else the bare file.
    """

    def check(launch: Launch, _: float) -> Outcome:
        with server(launch) as running:
            reply = asyncio.run(_upload(running, headers, form))
        return Outcome(reply.name, reply.status in statuses)

    return check


async def _upload(running: Running, headers: dict[str, str], form: bool) -> Reply:
    body = encoded(clip(0, 0.1), "wav")
    if form:
        body = b"--b\r\n%b\r\n\r\n%b\r\n--b--\r\n" % (_PART, body)
    return await exchange(running.port, [request(running.port, "/tags", body, headers)])


def _empty_key(launch: Launch, _: float) -> Outcome:
    """Check that a server with an empty API key does not start."""
    running = start(replace(launch, settings={"API_KEY": ""}))
    try:
        await_ready(running)
    except BadRequest:
        status = running.child.poll()
        return Outcome(f"does not start: exit status {status}", status not in (None, 0))
    finally:
        running.stop()
    return Outcome("starts", False)


def _many(count: int, scale: float) -> int:
    return max(1, round(count * scale))


_REFUSED: Final = frozenset({400, 403, 421})

PROMISES: Final = (
    Promise(
        "three times as many requests as fit",
        "only 200 and 429, p99 of 429 within 0.2 s",
        _refusals,
    ),
    Promise("small clips beside eight of ten minutes", "p99 at most 1 s", _small_beside_large),
    Promise("SIGTERM", "exit status 0", _exit_status),
    Promise("EMBEDDER_WORKERS=2, first 200 of /readyz", "all workers are ready", _two_workers),
    Promise(
        "a page of another site posts",
        "403",
        _asked({"Origin": "https://example.com", "Sec-Fetch-Site": "cross-site"}, _REFUSED),
    ),
    Promise("another name as Host", "400, 403 or 421", _asked({"Host": "example.com"}, _REFUSED)),
    Promise("an empty EMBEDDER_API_KEY", "an error at the start", _empty_key),
    Promise(
        "multipart with charset=undefined",
        "400",
        _asked(
            {"Content-Type": "multipart/form-data; boundary=b; charset=undefined"},
            frozenset({400}),
            form=True,
        ),
    ),
)
