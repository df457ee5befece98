"""Models that have to be fetched, and what is logged of that."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from embedder.errors import DownloadFailed
from tests.service_kit import (
    FakeModel,
)


class Shelf(dict[str, FakeModel]):
    """Models that are fetched by `fetch(name)`, however often that fails."""

    def __init__(self, fetch: Callable[[str], FakeModel], *names: str) -> None:
        super().__init__({name: FakeModel() for name in names})
        self.fetched: list[str] = []
        self._fetch = fetch

    def __getitem__(self, name: str) -> FakeModel:
        self.fetched.append(name)
        return self._fetch(name)


def offline() -> DownloadFailed:
    """What a model says whose download failed for want of a network."""
    error = DownloadFailed("no route to the weights")
    error.__cause__ = ConnectionError("no route")
    return error


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning or worse."""
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
