"""Live servers and waiting, for the service's tests; the rest is `service.testing`."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI

from embedder.testing import SAMPLE_RATE as RATE
from embedder.testing import wav_bytes
from service.decoding import DecoderPool
from service.protocol import BoundedHttp, HeadDeadline
from service.testing import FakeModel, fake_app, is_ready, running, settings, state_of

# What tests of the service import from here, wherever it is made.
__all__ = [
    "RATE",
    "WARM_UP",
    "FakeModel",
    "client_of",
    "connected",
    "decoder_pids",
    "eventually",
    "everything",
    "fake_app",
    "free_port",
    "is_ready",
    "live",
    "running",
    "settings",
    "state_of",
    "until",
    "wav",
]


def wav(samples: int = RATE, seed: int = 0, rate: int = RATE) -> bytes:
    """Noise in a 16-bit WAV file; every seed sounds different."""
    noise = np.random.default_rng(seed).integers(-8000, 8000, samples, dtype=np.int16)
    return wav_bytes(noise, rate)


WARM_UP = 3  # batches that a model computes before it is served


async def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something becomes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def until(ask: Callable[[], object], expected: object, seconds: float = 30) -> None:
    """Wait, without an event loop, until asking gives what is expected."""
    deadline = time.monotonic() + seconds
    while (answer := ask()) != expected:
        assert time.monotonic() < deadline, f"still {answer}"
        time.sleep(0.02)


def decoder_pids(pool: DecoderPool) -> list[int]:
    return [decoder.process.pid for decoder in pool.decoders]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def live(app: FastAPI, http: type[HeadDeadline] = BoundedHttp) -> Iterator[int]:
    """The application behind a real uvicorn on loopback; its port."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, http=http, log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not (server.started and is_ready(app)):
            assert thread.is_alive()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield port
    finally:
        server.should_exit = True
        thread.join(30)


def connected(port: int) -> socket.socket:
    """A bare connection to a live server."""
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side closes; a reset is a failure."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def client_of(port: int) -> httpx.Client:
    """A client of a live server."""
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
