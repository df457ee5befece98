"""Fixtures of the service's tests."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from embedder import AudioEmbedder
from embedder.testing import tiny_model
from service.app import create_app
from tests.service_kit import client_of, live, settings


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that runs the coroutines of tests."""
    return "asyncio"


@pytest.fixture(scope="module")
def model() -> AudioEmbedder:
    """A small model; its weights come from a seed, so that no two tags' scores are nearly equal."""
    return tiny_model()


@pytest.fixture(scope="module")
def client(model: AudioEmbedder) -> Iterator[httpx.Client]:
    """A client of a live server of `model`, whose cache begins empty."""
    app = create_app(settings(), {"mn01_as": model})
    with live(app) as port, client_of(port) as client:
        yield client
