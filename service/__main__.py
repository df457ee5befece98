"""`python -m service`: the server, configured by EMBEDDER_... variables."""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any

import uvicorn
from pydantic import ValidationError

from embedder.children import keep_children_safe
from embedder.errors import EmbedderError
from embedder.threads import wait_asleep
from service.protocol import BoundedHttp
from service.settings import Settings, faults

_FACTORY = "service.app:create_app"


def serve(settings: Settings | None = None) -> int:
    """Serve until a signal ends it; the process's exit code.

    With several workers each process reads its settings from the environment again.
    """
    keep_children_safe()
    wait_asleep()
    from service.app import create_app  # imports torch

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        settings = settings or Settings()
    except ValidationError as error:
        for fault in faults(error):
            logging.getLogger(__name__).error("%s", fault)
        return 2
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "http": BoundedHttp,
        "access_log": False,
        "server_header": False,
        "timeout_keep_alive": 30,
        "timeout_graceful_shutdown": round(settings.drain_seconds),
        "log_config": None,
    }
    if settings.workers > 1:
        uvicorn.run(_FACTORY, factory=True, workers=settings.workers, **options)
        return 0
    try:
        app = create_app(settings)
    except EmbedderError as error:
        logging.getLogger(__name__).error("%s", error)
        return 2
    server = Server(uvicorn.Config(app, **options))
    server.run()
    return 0 if server.started else 3


class Server(uvicorn.Server):
    """Says 503 on /readyz from the signal on, while it finishes what it has."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        app: Any = self.config.app
        app.state.service.draining = True
        super().handle_exit(sig, frame)


def main() -> None:
    """Entry point."""
    sys.exit(serve())


if __name__ == "__main__":
    main()
