"""Where the shared test material lies, if it is here at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

_BESIDE_THE_REPOSITORY: Final = Path(__file__).resolve().parents[2] / "shared"
SHARED: Final = Path(os.environ.get("EMBEDDER_SHARED", _BESIDE_THE_REPOSITORY))

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared material at {SHARED}")
