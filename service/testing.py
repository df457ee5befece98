"""An application in memory, with a client of it and a model without a network, for tests.

No port is opened. The decoders are real processes, as they are in a server.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import torch
from fastapi import FastAPI
from torch import Tensor

from embedder.errors import EmbedderError, UnknownTap
from embedder.testing import SAMPLE_RATE
from embedder.zoo import lookup
from service.app import create_app
from service.settings import Settings
from service.state import Service

_START_SECONDS: Final = 30.0
_SMALL: Final[Mapping[str, Any]] = {
    "decode_workers": 1,
    "threads": 1,
    "max_wait_ms": 0,
    "allowed_hosts": ("*",),
}


class FakeModel:
    """A model whose features are a few statistics; it counts, blocks and fails on demand."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.spec = lookup("mn01_as")
        self.labels: tuple[str, ...] = ("quiet", "loud", "rough")
        self.taps: tuple[str, ...] = ("mel",)
        self.tap_sizes: Mapping[str, int] = {"mel": 4, "b5": 4}
        self.weights_sha256 = "f" * 64
        self.sample_rate = SAMPLE_RATE
        self.device = torch.device("cpu")
        self.engine = "fake"
        self.calls = 0  # batches that began; `batches` holds those that went on
        self.batches: list[tuple[int, ...]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.poison: float | None = None  # windows that begin with this value fail
        self.broken: float | None = None  # windows that begin with this value give NaN

    def check_taps(self, taps: Iterable[str]) -> tuple[str, ...]:
        """These taps in this order, or UnknownTap."""
        chosen = tuple(taps)
        for tap in chosen:
            if tap not in self.tap_sizes:
                raise UnknownTap(tap, self.tap_sizes)
        return chosen

    def window_features(self, batch: Sequence[Tensor], taps: Iterable[str]) -> dict[str, Tensor]:
        """Mean, deviation, first and last sample of every window; "tags" are made of them."""
        windows = torch.cat(tuple(batch))  # N W
        self.calls += 1
        assert self.may_run.wait(_START_SECONDS), "nobody set may_run"
        self.batches.append(tuple(windows.shape))
        if self.poison is not None and bool((windows[:, 0] == self.poison).any()):
            raise RuntimeError("poisoned batch")
        deviation = windows.std(1) if windows.shape[1] > 1 else windows[:, 0] * 0
        features = torch.stack([windows.mean(1), deviation, windows[:, 0], windows[:, -1]], 1)
        if self.broken is not None:
            features[windows[:, 0] == self.broken] = float("nan")
        tags = torch.stack([-deviation, deviation, windows[:, 0]], 1).sigmoid()
        return {tap: tags if tap == "tags" else features for tap in taps}


class _OwnSettings(Settings):
    """Settings that read no environment variable."""

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[Any, ...]:
        return (sources["init_settings"],)


def settings(**changes: Any) -> Settings:
    """Settings of a small server that answers under any name and reads no environment variable."""
    return _OwnSettings(**{**_SMALL, **changes})


def fake_app(model: FakeModel | None = None, **changes: Any) -> FastAPI:
    """An application that serves one fake model under the name "fake"."""
    return create_app(settings(**changes), {"fake": model or FakeModel()})


def state_of(app: FastAPI) -> Service:
    """The state of an application: its models, its pipeline, its metrics."""
    service: Service = app.state.service
    return service


def is_ready(app: FastAPI) -> bool:
    """Whether the application would answer /readyz with 200."""
    try:
        state_of(app).check_ready()
    except EmbedderError:
        return False
    return True


@asynccontextmanager
async def running(
    app: FastAPI, ready: bool = True, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that runs in this event loop, ready unless told otherwise.

    Further options go to `httpx.AsyncClient`.
    """
    async with app.router.lifespan_context(app):
        deadline = time.monotonic() + _START_SECONDS
        while ready and not is_ready(app):
            assert time.monotonic() < deadline, "the application did not get ready"
            await asyncio.sleep(0.005)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", timeout=60, **options
        ) as client:
            yield client
