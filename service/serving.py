"""A server process: it runs the application in uvicorn until a signal or a failure ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from enum import IntEnum
from multiprocessing import parent_process
from types import FrameType
from typing import TYPE_CHECKING, Final

import uvicorn
from anyio import fail_after

from embedder.errors import EmbedderError
from embedder.process import keep_freed_memory, return_freed_memory
from service.protocol import BoundedHttp
from service.settings import Settings

if TYPE_CHECKING:
    from service.state import Service

LOG_FORMAT: Final = "%(levelname)s %(name)s: %(message)s"
_CLOSE_SECONDS: Final = 10.0  # to close everything, after the time to finish requests
_TRIM_TICKS: Final = 100  # uvicorn ticks ten times a second: memory is returned every ten seconds
_log = logging.getLogger(__name__)


class Exit(IntEnum):
    """The exit codes of a server; after a repeated signal the code is 128 plus its number."""

    STOPPED = 0
    HUNG = 1
    SETTINGS = 2
    ADDRESS = 3
    UNABLE = 4


FINAL: Final = frozenset({Exit.SETTINGS, Exit.ADDRESS, Exit.UNABLE})
"""Codes after which a new process with the same settings would end in the same way."""


def run(settings: Settings, sockets: Sequence[socket.socket]) -> int:
    """Serve on these sockets until a signal comes or the server cannot serve; return the code."""
    keep_freed_memory()  # before threads start, which would otherwise get arenas of their own
    from service.app import create_app  # late, because it imports torch

    try:
        app = create_app(settings)
    except EmbedderError as error:
        _log.error("%s", error)
        return Exit.SETTINGS
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(settings.drain_seconds),
        log_config=None,
    )
    service: Service = app.state.service
    Server(config, service).run(list(sockets))
    return Exit.UNABLE if service.fatal else Exit.STOPPED


class Server(uvicorn.Server):
    """uvicorn's server, which after a signal finishes its requests while /readyz answers 503."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._signals: set[int] = set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to stop. uvicorn's own handler would send the signal to itself again at the end."""
        if sig in self._signals:
            os._exit(128 + sig)
        self._signals.add(sig)
        self._service.draining = True
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop; uvicorn asks ten times a second."""
        parent = parent_process()
        if parent is not None:  # this is one of several processes, and will be replaced
            if self._service.models.hung:
                _log.error("a batch does not end; this process is replaced by another")
                _leave(Exit.HUNG)
            if not parent.is_alive():
                return True
        if counter % _TRIM_TICKS == _TRIM_TICKS - 1:
            await asyncio.to_thread(return_freed_memory)
        return bool(self._service.fatal) or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests; end the process even if a batch hangs."""
        limit = self._service.settings.drain_seconds + _CLOSE_SECONDS
        try:
            with fail_after(limit):
                await super().shutdown(sockets)
        except TimeoutError:
            _log.error("a batch did not end within %g s; the process ends without it", limit)
            _leave(Exit.HUNG)
        if self._service.models.reading:  # the thread of a download cannot be interrupted
            _leave(Exit.UNABLE if self._service.fatal else Exit.STOPPED)


def stop_signals() -> tuple[signal.Signals, signal.Signals]:
    """Return the signals that end a server."""
    return signal.SIGINT, signal.SIGTERM


def _leave(code: int) -> None:
    """End this process although one of its threads is still running."""
    logging.shutdown()
    os._exit(code)
