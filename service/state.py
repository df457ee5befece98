"""What the routes of one application share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from fastapi import Request

from embedder.errors import BadRequest
from embedder.events.frames import detectors, detects
from service.access import check_key
from service.cache import Cache, MemoryCache, NoCache
from service.errors import NotReady
from service.metrics import Metrics
from service.models import Models
from service.pipeline import Pipeline
from service.redis_cache import RedisCache
from service.settings import Settings

_POLL_SECONDS: Final = 0.05


@dataclass
class Service:
    """One server. `draining`: it finishes what it has, and takes nothing new."""

    settings: Settings
    metrics: Metrics
    models: Models
    pipeline: Pipeline
    draining: bool = False
    lacking: str = ""

    async def start(self) -> None:
        """Start the decoders and begin to load the default model.

        Where several processes accept from one socket, only those that can serve do so.
        """
        self.models.start()
        try:
            await self.pipeline.decoders.start()
        except NotReady as error:
            self.lacking = str(error)
        while self.settings.workers > 1 and not (self.models.ready or self.fatal or self.draining):
            await asyncio.sleep(_POLL_SECONDS)

    @property
    def fatal(self) -> bool:
        """Whether this server will never serve."""
        return self.models.fatal or bool(self.lacking)

    async def close(self) -> None:
        """Fail what waits, end all helpers."""
        self.draining = True
        await self.models.close()
        await self.pipeline.decoders.close()
        await self.pipeline.cache.close()

    def check_ready(self) -> None:
        """NotReady unless a request would be served now."""
        if self.draining:
            raise NotReady("the server is stopping; ask another one")
        if self.lacking:
            raise NotReady(self.lacking)
        if not self.models.ready:
            raise NotReady(self.models.failure or "the model is being loaded")

    async def check_detects(self, name: str | None) -> None:
        """BadRequest for a model that finds no events, naming those served here that do."""
        served = await self.models.get(name)
        if detects(served.model.spec):
            return
        able = [known for known in self.models.names if self._detects(known)]
        remedy = (
            f"choose one of {', '.join(able)}"
            if able
            else (f"no model of this server does; serve one with EMBEDDER_MODELS={detectors()[0]}")
        )
        raise BadRequest(f"{served.model.name} finds no events; {remedy}")

    def _detects(self, name: str) -> bool:
        """Whether a model finds events; of one in a file, only once it is loaded."""
        if name in self.models.loaded:
            return detects(self.models.loaded[name].model.spec)
        return name in detectors()


def make_cache(settings: Settings) -> Cache:
    """Redis where a URL is set, else this process's memory, else none."""
    if settings.redis_url is not None:
        timeout = settings.redis_timeout_ms / 1000
        connecting = settings.redis_connect_timeout_ms / 1000
        url = str(settings.redis_url)
        return RedisCache(url, timeout, settings.cache_ttl_seconds, connecting)
    return MemoryCache(settings.cache_bytes) if settings.cache_bytes else NoCache()


def service_of(request: Request) -> Service:
    """The server that this request came to."""
    service: Service = request.app.state.service
    return service


async def require_key(request: Request) -> None:
    """Unauthorized without one of the API keys, where any is set."""
    keys = service_of(request).settings.keys
    if keys:
        check_key(request.headers.get("authorization", ""), keys)
