"""The material beside the repository that tests use where it is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

SHARED: Final = Path(
    os.environ.get("EMBEDDER_SHARED", Path(__file__).resolve().parents[2] / "shared")
)
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="no shared folder beside the repository (EMBEDDER_SHARED)"
)
