"""Where the repository and the shared test material lie, if that is here at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
SHARED: Final = Path(os.environ.get("EMBEDDER_SHARED", ROOT.parent / "shared"))
FORMATS: Final = SHARED / "audio" / "formats"
BAD: Final = SHARED / "audio" / "bad"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared material at {SHARED}")
