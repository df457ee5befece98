"""Starts a server as a child process, from this installation or from another source tree."""

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

from embedder.children import import_path
from embedder.errors import BadRequest
from embedder.extras import require

START_SECONDS: Final = 300.0  # a busy machine needs long
STOP_SECONDS: Final = 60.0
_PREFIX: Final = "EMBEDDER_"
_KEPT: Final = ("EMBEDDER_WEIGHTS_DIR",)  # where weights lie is no setting of the server


def psutil() -> Any:
    """Return the module psutil; BadRequest says how to install it."""
    require("psutil")
    import psutil

    return psutil


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started.

    `settings` are EMBEDDER_ variables without the prefix; `tree` is the source tree, `cache` the
    folder of caches, `log` the file for its output. None is the default.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    tree: Path | None = None
    cache: Path | None = None
    log: Path | None = None

    def environment(self, port: int) -> dict[str, str]:
        """Return the child's environment: ours, but with no settings except those given here."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT or not name.startswith(_PREFIX)
        }
        settings = {"PORT": str(port), "DEVICE": "cpu", **self.settings}
        named = {f"{_PREFIX}{name}": value for name, value in settings.items()}
        folders = {"PYTHONPATH": self.tree, "XDG_CACHE_HOME": self.cache}
        kept |= import_path()
        return kept | named | {name: str(path) for name, path in folders.items() if path}


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has started: its port and its process."""

    port: int
    child: subprocess.Popen[bytes]

    @property
    def process(self) -> Any:
        """The server's process, as an object of psutil."""
        return psutil().Process(self.child.pid)

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Send SIGTERM, wait, and return the exit status; kill what still runs after `seconds`."""
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
    """Start a server, wait until it is ready, and stop it when the context ends."""
    running = start(launch)
    try:
        await_ready(running)
        yield running
    finally:
        running.stop()


def start(launch: Launch) -> Running:
    """Start a server; do not wait until it is ready."""
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
    import httpx  # here: without the development tools, psutil is what a benchmark lacks first

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
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
