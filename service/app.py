"""Settings to application: everything is made and wired here, once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

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
    """The application.

    Parameters
    ----------
    settings : default: read from the environment (EMBEDDER_...).
    models : models to serve as they are, by name, the first one the default; for tests and
        for embedding the service. Default: those that the settings name, loaded at the start.

    Raises
    ------
    UnknownModel : the settings name a model that there is not.
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

    # FastAPI, with the assets of /docs served from here instead of a CDN.
    app = FastAPIOffline(
        title="audio-embedder",
        version=embedder.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        root_path=settings.root_path,
        redoc_url=None,
    )
    app.state.service = service
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **_CORS)
    app.add_middleware(Access, settings=settings)
    app.add_middleware(  # the last one is the outermost
        Guard,
        memory=pipeline.uploads,
        metrics=metrics,
        body_limit=lambda path: _body_limit(settings, path),
        body_seconds=settings.body_seconds,
    )
    errors.install(app)
    for router in (routes.router, openai.router, operations.router):
        app.include_router(router)
    describe(app, asks_for_key=bool(settings.keys))
    return app


def _body_limit(settings: Settings, path: str) -> int:
    """Bytes of a whole body. Not FastAPI's max_body_size: its 413 is no problem document."""
    if path.endswith("/v1/embeddings"):
        return settings.max_json_bytes
    return settings.max_bytes + MULTIPART_OVERHEAD


def _watch(service: Service) -> None:
    gauge, models = service.metrics.gauge, service.models
    gauge("embedder_ready", "1 where a request would be served.", lambda: float(models.ready))
    gauge(
        "embedder_waiting_jobs",
        "Jobs that no batch has taken up.",
        lambda: sum(one.batcher.waiting for one in models.loaded.values()),
    )
    gauge(
        "embedder_oldest_batch_seconds",
        "How long the oldest batch under way has taken.",
        lambda: models.oldest_batch_seconds,
    )
    gauge(
        "embedder_busy_slots",
        "Requests being decoded or computed.",
        lambda: service.pipeline.slots.taken,
    )
