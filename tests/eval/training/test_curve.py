"""A run's picture."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_a_log_becomes_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from eval.training.curve import draw

    rows = [
        {"step": 10.0, "loss": 2.0, "accuracy": 0.4},
        {"step": 20.0, "loss": 1.0, "accuracy": 0.6, "error_b5": 0.3},
    ]
    draw(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
