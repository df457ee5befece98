"""Cores are those this process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedder import process
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
    monkeypatch.setattr(process, "_CGROUP_QUOTA", file)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert process.available_cores() == cores


def test_without_a_container_affinity_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "_CGROUP_QUOTA", tmp_path / "absent")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5})
    assert process.available_cores() == 3


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.VARIABLE, "7")
    assert process.threads() == 7
    for value in ("0", "-1", "many"):
        monkeypatch.setenv(process.VARIABLE, value)
        with pytest.raises(BadRequest, match=value):
            process.threads()


def test_idle_threads_sleep_unless_the_user_wants_them_to_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(process.WAIT_POLICY, "ACTIVE")
    process.wait_asleep()
    assert os.environ[process.WAIT_POLICY] == "ACTIVE"
    monkeypatch.delenv(process.WAIT_POLICY)
    process.wait_asleep()
    assert os.environ[process.WAIT_POLICY] == "PASSIVE"


@pytest.mark.parametrize("module", ["embedder.cli", "service.__main__"])
def test_programs_settle_that_before_torch_is_there(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
