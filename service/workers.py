"""Several server processes that accept from the same sockets. One that dies is replaced."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Final

from service.serving import FINAL, LOG_FORMAT, Exit, run, stop_signals
from service.settings import Settings

_TICK_SECONDS: Final = 0.2
_PAUSE_SECONDS: Final = 1.0  # before a process is replaced, in case each one dies at once
_log = logging.getLogger(__name__)


class Workers:
    """The processes of a server. A signal ends them all; so does one that can never start."""

    def __init__(self, settings: Settings, sockets: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._sockets = sockets
        self._processes: list[BaseProcess] = []
        self._signals: Counter[int] = Counter()

    def run(self) -> int:
        """Serve until the end, and return the exit code."""
        before = {sig: signal.signal(sig, self._note) for sig in stop_signals()}
        try:
            self._processes = [self._started() for _ in range(self._settings.workers)]
            code = self._watch()
            return self._end(code)
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def _note(self, sig: int, _: FrameType | None) -> None:
        self._signals[sig] += 1

    def _watch(self) -> int:
        while not self._signals:
            wait([process.sentinel for process in self._processes], _TICK_SECONDS)
            for index, process in enumerate(self._processes):
                if process.exitcode is None or self._signals:
                    continue
                if process.exitcode in FINAL:
                    return process.exitcode
                _log.error("server process %s ended with %s", process.pid, process.exitcode)
                time.sleep(_PAUSE_SECONDS)
                self._processes[index] = self._started()
        return Exit.STOPPED

    def _started(self) -> BaseProcess:
        # Ctrl-C reaches all processes of a terminal; the children ignore it, and we end them.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = get_context("spawn").Process(
                target=_serve, args=(self._settings, list(self._sockets))
            )
            process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        return process

    def _end(self, code: int) -> int:
        """Ask all processes to finish; kill them if the same signal comes twice."""
        for listening in self._sockets:  # clients that connect now would wait in vain
            listening.close()
        for process in self._processes:
            process.terminate()
        while any(process.is_alive() for process in self._processes):
            wait([process.sentinel for process in self._processes], _TICK_SECONDS)
            forced = [sig for sig, times in self._signals.items() if times > 1]
            if forced:
                for process in self._processes:
                    process.kill()
                return 128 + forced[0]
            time.sleep(_TICK_SECONDS / 4)  # once a process has ended, `wait` returns at once
        return code


def _serve(settings: Settings, sockets: Sequence[socket.socket]) -> None:
    """Run in each child process: serve, and exit with the server's code."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    sys.exit(run(settings, sockets))
