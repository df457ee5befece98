"""The objects that all routes of an application share."""

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
    """A server. While it is `draining`, it finishes its requests and accepts no new ones."""

    settings: Settings
    metrics: Metrics
    models: Models
    pipeline: Pipeline
    draining: bool = False
    lacking: str = ""  # why it can never serve, if the decoders are the reason

    async def start(self) -> None:
        """Start the decoders and begin to load the default model.

        Of several workers, each waits here until it can serve: they accept from the same sockets.
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
        """Let waiting requests fail, and end models, decoders and cache."""
        self.draining = True
        await self.models.close()
        await self.pipeline.decoders.close()
        await self.pipeline.cache.close()

    def check_ready(self) -> None:
        """Raise NotReady unless a request would be served now."""
        if self.draining:
            raise NotReady("the server is stopping; ask another one")
        if self.lacking:
            raise NotReady(self.lacking)
        if not self.models.ready:
            raise NotReady(self.models.failure or "the model is being loaded")

    async def check_detects(self, name: str | None) -> None:
        """Raise BadRequest if a model finds no events; the message names models that do."""
        served = await self.models.get(name)
        if detects(served.model.spec):
            return
        able = [other for other in self.models.names if self._detects(other)]
        remedy = (
            f"choose one of {', '.join(able)}"
            if able
            else (f"no model of this server does; serve one with EMBEDDER_MODELS={detectors()[0]}")
        )
        raise BadRequest(f"{served.model.name} finds no events; {remedy}")

    def _detects(self, name: str) -> bool:
        """Return whether a model finds events; a model from a file is known once it is loaded."""
        if name in self.models.loaded:
            return detects(self.models.loaded[name].model.spec)
        return name in detectors()


def make_cache(settings: Settings) -> Cache:
    """Make the cache of the settings: in redis, in this process's memory, or none."""
    if settings.redis_url is not None:
        timeout = settings.redis_timeout_ms / 1000
        connecting = settings.redis_connect_timeout_ms / 1000
        url = str(settings.redis_url)
        return RedisCache(url, timeout, settings.cache_ttl_seconds, connecting)
    return MemoryCache(settings.cache_bytes) if settings.cache_bytes else NoCache()


def service_of(request: Request) -> Service:
    """Return the server that received this request."""
    service: Service = request.app.state.service
    return service


async def require_key(request: Request) -> None:
    """Raise Unauthorized if the server has API keys and the request has none of them."""
    keys = service_of(request).settings.keys
    if keys:
        check_key(request.headers.get("authorization", ""), keys)
