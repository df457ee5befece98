"""A redis server of our own for tests."""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.service_kit import until

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="no redis-server on the path"
)


@contextmanager
def redis_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A redis of our own; ended on leaving, if it was not before."""
    options = ["--port", str(port), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    with subprocess.Popen(
        ["redis-server", *options, "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL
    ) as process:
        try:
            _await_port(port)
            yield process
        finally:
            process.kill()


def _await_port(port: int) -> None:
    with socket.socket() as probe:
        until(lambda: probe.connect_ex(("127.0.0.1", port)) in (0, errno.EISCONN), True)
