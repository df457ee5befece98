"""A server as a child process, with its default settings: of this installation or another tree."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from embedder.children import import_path
from embedder.errors import BadRequest
from embedder.extras import require

START_SECONDS: Final = 300.0  # on a busy machine
STOP_SECONDS: Final = 60.0
_PREFIX: Final = "EMBEDDER_"
_KEPT: Final = ("EMBEDDER_WEIGHTS_DIR",)  # where weights lie is no setting of the server


def psutil() -> Any:
    """The module psutil, or BadRequest with the remedy."""
    require("psutil")
    import psutil

    return psutil


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server starts: EMBEDDER_ settings by name, the source tree, its cache, its log."""

    settings: Mapping[str, str] = field(default_factory=dict)
    tree: Path | None = None
    cache: Path | None = None
    log: Path | None = None

    def environment(self, port: int) -> dict[str, str]:
        """The child's environment: ours, without any other setting of the server."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT or not name.startswith(_PREFIX)
        }
        settings = {"PORT": str(port), "DEVICE": "cpu", **self.settings}
        named = {f"{_PREFIX}{name}": value for name, value in settings.items()}
        places = {"PYTHONPATH": self.tree, "XDG_CACHE_HOME": self.cache}
        kept |= import_path()
        return kept | named | {name: str(path) for name, path in places.items() if path}


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has started: its port and its process."""

    port: int
    child: subprocess.Popen[bytes]

    @property
    def process(self) -> Any:
        """The process as psutil knows it."""
        return psutil().Process(self.child.pid)

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Send SIGTERM, wait, and return the exit status; whatever stays is killed."""
        children = self._children()
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()
        finally:
            for child in children:
                if child.is_running():
                    child.kill()

    def _children(self) -> list[Any]:
        try:
            return list(self.process.children(recursive=True))
        except psutil().NoSuchProcess:
            return []


@contextmanager
def server(launch: Launch) -> Iterator[Running]:
    """A server that is ready; it ends with the context."""
    running = start(launch)
    try:
        await_ready(running)
        yield running
    finally:
        running.stop()


def start(launch: Launch) -> Running:
    """A server that has just been started, not ready yet."""
    psutil()
    port = free_port()
    output = subprocess.DEVNULL if launch.log is None else launch.log.open("wb")
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=launch.environment(port),
            cwd=launch.tree,
            stdout=output,
            stderr=output,
        )
    finally:
        if not isinstance(output, int):
            output.close()
    return Running(port, child)


def await_ready(running: Running, seconds: float = START_SECONDS) -> None:
    """Wait until /readyz answers 200; BadRequest if it never does."""
    deadline = time.monotonic() + seconds
    while running.child.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{running.port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise BadRequest(
        f"the server did not get ready (exit status {running.child.poll()}); "
        "start `python -m service` by hand to see why"
    )


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
