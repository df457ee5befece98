"""`python -m service` runs the server, which EMBEDDER_... variables configure."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pydantic import ValidationError

from embedder.children import keep_children_safe
from embedder.process import wait_asleep
from service.listening import CannotListen, listen, url
from service.serving import LOG_FORMAT, Exit, run, stop_signals
from service.settings import Settings, faults
from service.workers import Workers

_log = logging.getLogger("service")


def serve(settings: Settings | None = None) -> int:
    """Serve until a signal comes, and return the exit code (`service.serving.Exit`)."""
    keep_children_safe()
    wait_asleep()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    try:
        settings = settings or Settings()
        sockets = listen(settings.host, settings.port)
    except ValidationError as error:
        for fault in faults(error):
            _log.error("%s", fault)
        return Exit.SETTINGS
    except CannotListen as error:
        _log.error("%s", error)
        return Exit.ADDRESS
    try:
        _log.info("listening on %s; loading %s", url(sockets[0]), settings.model)
        if settings.workers > 1:
            return Workers(settings, sockets).run()
        with _stopping_early():
            return run(settings, sockets)
    finally:
        for listening in sockets:
            listening.close()


@contextmanager
def _stopping_early() -> Iterator[None]:
    """Let a signal end the process without an error, even before uvicorn handles signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {sig: signal.signal(sig, _stop) for sig in stop_signals()}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _stop(_: int, __: FrameType | None) -> None:
    sys.exit(Exit.STOPPED)


def main() -> None:
    """Run the server and exit with its code."""
    sys.exit(serve())


if __name__ == "__main__":
    main()
