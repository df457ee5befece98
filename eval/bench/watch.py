"""Watches a server from outside: its memory, threads and descriptors, and how long it stalls.

`python -m eval.bench.watch PID PORT LIMIT` runs as a process of its own, so that the process of
the load does not delay its measurements. It asks /livez every 20 ms, and kills the server when it
takes more than LIMIT MiB.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from embedder.children import import_path
from eval.bench.launch import psutil

POLL_SECONDS: Final = 0.02
SAMPLE_SECONDS: Final = 0.05
MiB: Final = 1 << 20
_REQUEST: Final = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Sample:
    """What a server and its children take at one time."""

    server_mib: float
    children_mib: float
    threads: int
    descriptors: int
    children: int

    @property
    def mib(self) -> float:
        """Resident memory of the server and its children."""
        return self.server_mib + self.children_mib

    @classmethod
    def of(cls, process: Any) -> Sample:
        """Measure a process (of psutil) and its children now."""
        server = process.memory_info().rss / MiB
        rest = 0.0
        children = process.children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil().NoSuchProcess):  # it has just ended
                rest += child.memory_info().rss / MiB
        return cls(server, rest, process.num_threads(), process.num_fds(), len(children))


@dataclass(frozen=True, slots=True)
class ServerUsage:
    """The most that a server took while it was watched; `killed` if that was beyond the limit."""

    peak_mib: float
    start_mib: float
    threads: int
    start_threads: int
    stall: float  # longest time without an answer of /livez [s]
    killed: bool


class ServerWatch:
    """Watches a server, in a process of its own, until `end` is called."""

    def __init__(self, pid: int, port: int, limit_mib: float) -> None:
        words = [str(pid), str(port), str(limit_mib)]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "eval.bench.watch", *words],
            env={**os.environ, **import_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdout
        self._child.stdout.readline()  # comes when it has begun to watch

    def end(self) -> ServerUsage:
        """Stop watching, and return what was measured."""
        output, _ = self._child.communicate(timeout=60)
        return ServerUsage(**json.loads(output))


class _Pulse(threading.Thread):
    """Asks /livez again and again, and keeps the longest time that an answer took."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._asked = 0.0  # 0: no question is open
        self._longest = 0.0

    @property
    def stall(self) -> float:
        """The longest time so far, also of a question that is not answered yet [s]."""
        asked = self._asked
        return max(self._longest, time.monotonic() - asked if asked else 0.0)

    def run(self) -> None:
        while True:
            with contextlib.suppress(OSError), self._connect() as connection:
                while self._beat(connection):
                    time.sleep(POLL_SECONDS)
            time.sleep(POLL_SECONDS)

    def _connect(self) -> socket.socket:
        self._asked = self._asked or time.monotonic()  # waiting for a connection counts too
        return socket.create_connection(("127.0.0.1", self._port))

    def _beat(self, connection: socket.socket) -> bool:
        """Ask once; return False if the connection was closed."""
        self._asked = self._asked or time.monotonic()
        connection.sendall(_REQUEST % self._port)
        answered = bool(connection.recv(1 << 16))
        if answered:
            self._longest, self._asked = self.stall, 0.0
        return answered


class _Peak:
    """Takes samples of a server, and keeps the highest values."""

    def __init__(self, process: Any, limit_mib: float) -> None:
        self._process = process
        self._limit = limit_mib
        self._start = self._highest = Sample.of(process)
        self._threads = self._start.threads
        self._killed = False

    def update(self) -> bool:
        """Take a sample, and kill the server if it is beyond the limit.

        Returns False if the process has ended, or was killed.
        """
        try:
            now = Sample.of(self._process)
        except psutil().Error:
            return False
        if now.mib > self._highest.mib:
            self._highest = now
        self._threads = max(self._threads, now.threads)
        if now.mib <= self._limit:
            return True
        self._killed = True
        for process in (self._process, *self._process.children(recursive=True)):
            process.kill()
        return False

    def usage(self, stall: float) -> ServerUsage:
        start = self._start
        return ServerUsage(
            self._highest.mib, start.mib, self._threads, start.threads, stall, self._killed
        )


def _await_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def main() -> None:
    """Watch until stdin closes; then print what was measured, as JSON."""
    pid, port, limit = sys.argv[1:]
    peak = _Peak(psutil().Process(int(pid)), float(limit))
    pulse = _Pulse(int(port))
    pulse.start()
    ended = threading.Event()
    threading.Thread(target=_await_end, args=[ended], daemon=True).start()
    sys.stdout.write("\n")
    sys.stdout.flush()
    alive, stall = True, 0.0
    while not ended.wait(SAMPLE_SECONDS):
        if alive:
            alive, stall = peak.update(), pulse.stall  # a server that has ended does not stall
    json.dump(asdict(peak.usage(pulse.stall if alive else stall)), sys.stdout)


if __name__ == "__main__":
    main()
