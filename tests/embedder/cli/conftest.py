"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedder.model import AudioEmbedder
from tests.cli_kit import MODEL, plain_environment, tiny_model, write_weights


@pytest.fixture(scope="module")
def model() -> Iterator[AudioEmbedder]:
    """The model that `environment` names."""
    with tiny_model() as built:
        yield built


@pytest.fixture(autouse=True)
def environment(model: AudioEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's choice is the tiny model, and the cache is empty."""
    plain_environment(monkeypatch)
    monkeypatch.setenv("EMBEDDER_MODEL", MODEL)
    monkeypatch.setenv("EMBEDDER_WEIGHTS", str(write_weights(model, tmp_path / "tiny.pt")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
