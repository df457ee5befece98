"""Everything works in a folder whose files are called as our packages and Python's modules are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.cli_kit import MODEL, rows, tiny_model, write_noises, write_weights
from tests.service_kit import free_port
from tests.shared import ROOT

PACKAGES = ("embedder", "service", "eval", "hear_api", "uvicorn")
MODULES = ("queue", "struct", "random", "socket", "numpy", "soxr")
# What pip writes as the command `embedder`.
SCRIPT = """import sys
from embedder.cli import main

if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The user's folder, where nothing may be imported from."""
    folder = tmp_path / "work"
    trap = "raise SystemExit('wrong module')\n"
    for name in PACKAGES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(trap)
    for name in MODULES:
        (folder / f"{name}.py").write_text(trap)
    return folder


@pytest.fixture
def embedder(tmp_path: Path) -> list[str]:
    script = tmp_path / "bin" / "embedder"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    return [sys.executable, str(script)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    with tiny_model() as model:
        weights = write_weights(model, tmp_path / "weights.pt")
    given = {"MODEL": MODEL, "WEIGHTS": str(weights), "DEVICE": "cpu", "DECODE_WORKERS": "2"}
    ours = {name: text for name, text in os.environ.items() if not name.startswith("EMBEDDER_")}
    ours.pop("PYTHONSAFEPATH", None)
    ours |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    return ours | {f"EMBEDDER_{name}": text for name, text in given.items()}


def test_the_command_line(folder: Path, embedder: list[str], environment: dict[str, str]) -> None:
    write_noises(folder / "sounds", [0.2, 0.3, 0.4])
    command = [*embedder, "embed", "sounds", "-o", "out.parquet"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["error"] for row in rows(folder / "out.parquet")] == [None] * 3


@pytest.mark.parametrize(
    "line",
    [
        "train corpus sounds --out corpus --workers 2 --synthetic 28",
        "bench fuzz --files 20 --requests 0 --checkpoints 0 --processes 2 --json fuzz.json",
    ],
)
def test_commands_of_other_packages_and_their_children(
    folder: Path, embedder: list[str], environment: dict[str, str], line: str
) -> None:
    write_noises(folder / "sounds", [0.2, 0.3, 0.4])
    done = subprocess.run(
        [*embedder, *line.split()],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "wrong module" not in done.stderr


def test_the_module_as_a_command_beside_a_folder_of_ours(
    folder: Path, environment: dict[str, str]
) -> None:
    beside = folder.parent / "beside"
    beside.mkdir()
    (folder / "eval").rename(beside / "eval")
    command = [sys.executable, "-m", "embedder", "train", "mixtures", "--help"]
    done = subprocess.run(
        command, cwd=beside, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--folds" in done.stdout


@contextmanager
def serving(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a server started in that folder."""
    address = f"http://127.0.0.1:{free_port()}"
    port = {"EMBEDDER_PORT": address.rpartition(":")[2]}
    process = subprocess.Popen([*command, "serve"], cwd=folder, env=environment | port)
    try:
        yield address
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(60)


def tags(address: str, audio: bytes) -> httpx.Response:
    """The answer of the first worker that is ready."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            answer = httpx.post(f"{address}/tags", content=audio, trust_env=False)
            if answer.status_code != 503:
                return answer
        time.sleep(0.1)
    raise TimeoutError("the server did not get ready")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_server_and_its_decoders(
    folder: Path, embedder: list[str], environment: dict[str, str], workers: int
) -> None:
    [path] = write_noises(folder, [0.2])
    environment["EMBEDDER_WORKERS"] = str(workers)
    with serving(embedder, folder, environment) as address:
        answer = tags(address, path.read_bytes())
        assert (answer.status_code, len(answer.json()["tags"])) == (200, 10)
