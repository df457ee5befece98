"""Cores are those this process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedder import threads
from embedder.errors import BadRequest


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)],
)
def test_a_containers_quota_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(threads, "_CGROUP_QUOTA", file)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert threads.available_cores() == cores


def test_without_a_container_affinity_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(threads, "_CGROUP_QUOTA", tmp_path / "absent")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5})
    assert threads.available_cores() == 3


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.VARIABLE, "7")
    assert threads.threads() == 7
    for value in ("0", "-1", "many"):
        monkeypatch.setenv(threads.VARIABLE, value)
        with pytest.raises(BadRequest, match=value):
            threads.threads()
