"""The application: everything it consists of is made here from the settings, and connected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import embedder
from service import errors, openai, operations, routes
from service.access import Access
from service.metrics import Metrics
from service.middleware import Guard
from service.models import Models, WindowModel
from service.openapi import describe
from service.pipeline import Pipeline
from service.settings import Settings
from service.state import Service, make_cache
from service.uploads import MULTIPART_OVERHEAD

_CORS: Final[dict[str, Any]] = {
    "allow_methods": ("GET", "POST"),
    "allow_headers": ("*",),
    "expose_headers": ("Retry-After", "Server-Timing", "X-Cache", "X-Model"),
    "allow_private_network": True,
}
DESCRIPTION = """\
Embeddings and tags of any audio. Post a file to `/embed` or `/tags`:

    curl -F file=@sound.wav http://localhost:8000/tags
"""


def create_app(
    settings: Settings | None = None, models: Mapping[str, WindowModel] | None = None
) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    settings : default: read from the environment (EMBEDDER_...).
    models : loaded models by name, the default model first; for tests, and for programs that
        contain the service. Default: the models that the settings name, loaded at the start.

    Raises
    ------
    UnknownModel : the settings name a model that does not exist.
    """
    settings = settings or Settings()
    metrics = Metrics()
    served = Models(settings, models, metrics.batch)
    pipeline = Pipeline(settings, served, make_cache(settings), metrics)
    service = Service(settings, metrics, served, pipeline)
    _watch(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
            yield
        finally:
            await service.close()

    # FastAPIOffline is FastAPI that serves the assets of /docs itself, instead of using a CDN.
    app = FastAPIOffline(
        title="audio-embedder",
        version=embedder.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        root_path=settings.root_path,
        redoc_url=None,
    )
    app.state.service = service
    cors = _cors(settings.cors_origins)
    app.add_middleware(cors)  # the middleware that is added last is the outermost
    app.add_middleware(Access, settings=settings)
    app.add_middleware(
        Guard,
        memory=pipeline.uploads,
        metrics=metrics,
        body_limit=lambda path: _body_limit(settings, path),
        body_seconds=settings.body_seconds,
        wrap_errors=cors,
    )
    errors.install(app)
    for router in (routes.router, openai.router, operations.router):
        app.include_router(router)
    describe(app, asks_for_key=bool(settings.keys))
    return app


def _body_limit(settings: Settings, path: str) -> int:
    """Return how many bytes a body may have.

    FastAPI's max_body_size is not used, because its 413 is no problem document.
    """
    if path.endswith("/v1/embeddings"):
        return settings.max_json_bytes
    return settings.max_bytes + MULTIPART_OVERHEAD


def _cors(origins: tuple[str, ...]) -> Callable[[ASGIApp], ASGIApp]:
    """Return middleware that adds CORS headers for these origins; without any it adds nothing."""
    if not origins:
        return lambda app: app
    return partial(CORSMiddleware, allow_origins=origins, **_CORS)


def _watch(service: Service) -> None:
    """Add the gauges, whose values are read from the service."""
    gauge, models = service.metrics.gauge, service.models
    gauge("embedder_ready", "1 if a request would be served now.", lambda: float(models.ready))
    gauge(
        "embedder_waiting_jobs",
        "Jobs that are in no batch yet.",
        lambda: sum(served.batcher.waiting for served in models.loaded.values()),
    )
    gauge(
        "embedder_oldest_batch_seconds",
        "Seconds since the oldest running batch began.",
        lambda: models.oldest_batch_seconds,
    )
    gauge(
        "embedder_busy_slots",
        "Requests being decoded or computed.",
        lambda: service.pipeline.slots.taken,
    )
