"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shared import SHARED


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared material at {SHARED}")
    return SHARED
