"""Sounds, fake models and running applications for the service's tests."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from torch import Tensor

from embedder.errors import EmbedderError, UnknownTap
from embedder.zoo import lookup
from service.app import create_app
from service.decoding import DecoderPool
from service.protocol import BoundedHttp
from service.settings import Settings
from service.state import Service
from tests.sounds import wav_of

RATE = 32_000


def wav(samples: int = RATE, seed: int = 0, rate: int = RATE) -> bytes:
    """Noise in a 16-bit WAV file; every seed sounds different."""
    noise = np.random.default_rng(seed).integers(-8000, 8000, samples, dtype=np.int16)
    return wav_of(noise, rate)


WARM_UP = 3  # batches that a model computes before it is served


class FakeModel:
    """No network: features are a few statistics. Counts, blocks and fails on demand."""

    name = "fake"
    spec = lookup("mn01_as")
    labels = ("quiet", "loud", "rough")
    taps = ("mel",)
    tap_sizes: Mapping[str, int] = {"mel": 4, "b5": 4}
    weights_sha256 = "f" * 64
    sample_rate = RATE
    device = torch.device("cpu")
    engine = "fake"

    def __init__(self) -> None:
        self.calls = 0  # begun; `batches` are those that went on
        self.batches: list[tuple[int, ...]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.poison: float | None = None  # windows that begin with this value fail
        self.broken: float | None = None  # windows that begin with this value give NaN

    def check_taps(self, taps: Iterable[str]) -> tuple[str, ...]:
        chosen = tuple(taps)
        for tap in chosen:
            if tap not in self.tap_sizes:
                raise UnknownTap(tap, self.tap_sizes)
        return chosen

    def window_features(self, batch: Sequence[Tensor], taps: Iterable[str]) -> dict[str, Tensor]:
        windows = torch.cat(tuple(batch))
        self.calls += 1
        assert self.may_run.wait(30)
        self.batches.append(tuple(windows.shape))
        if self.poison is not None and bool((windows[:, 0] == self.poison).any()):
            raise RuntimeError("poisoned batch")
        deviation = windows.std(1) if windows.shape[1] > 1 else windows[:, 0] * 0
        features = torch.stack([windows.mean(1), deviation, windows[:, 0], windows[:, -1]], 1)
        if self.broken is not None:
            features[windows[:, 0] == self.broken] = float("nan")
        tags = torch.stack([-deviation, deviation, windows[:, 0]], 1).sigmoid()
        return {tap: tags if tap == "tags" else features for tap in taps}


def settings(**changes: Any) -> Settings:
    """Small, and independent of the environment's EMBEDDER_ variables."""
    # Tests call their servers by names of all kinds.
    defaults: dict[str, Any] = {"decode_workers": 1, "threads": 1, "max_wait_ms": 0}
    defaults["allowed_hosts"] = ("*",)
    return Settings(**{**defaults, **changes})


@asynccontextmanager
async def running(
    app: FastAPI, ready: bool = True, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has started, in this event loop."""
    async with app.router.lifespan_context(app):
        if ready:
            await eventually(lambda: is_ready(app))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", timeout=60, **options
        ) as client:
            yield client


def service_of(app: FastAPI) -> Service:
    service: Service = app.state.service
    return service


def is_ready(app: FastAPI) -> bool:
    try:
        service_of(app).check_ready()
    except EmbedderError:
        return False
    return True


async def eventually(condition: Any, seconds: float = 30) -> None:
    """Wait until something becomes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def until(ask: Any, expected: Any, seconds: float = 30) -> None:
    """The same without an event loop."""
    deadline = time.monotonic() + seconds
    while (found := ask()) != expected:
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.02)


def decoder_pids(pool: DecoderPool) -> list[int]:
    return [decoder.process.pid for decoder in pool._all]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def live(app: FastAPI, http: type[BoundedHttp] = BoundedHttp) -> Iterator[int]:
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


def fake_app(model: FakeModel | None = None, **changes: Any) -> FastAPI:
    return create_app(settings(**changes), {"fake": model or FakeModel()})
