"""Metrics for Prometheus.

Each application has a registry of its own, so that several can live in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_WINDOWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "embedder_requests",
            "Answered requests.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "embedder_request_seconds",
            "Time from the request's head to the end of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "embedder_stage_seconds",
            "Time of each stage of a request that was computed.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._cache = Counter(
            "embedder_cache", "Cache lookups by outcome.", ("outcome",), registry=self._registry
        )
        self._batch_windows = Histogram(
            "embedder_batch_windows",
            "Windows in a batch.",
            buckets=_WINDOWS,
            registry=self._registry,
        )
        self._batch_seconds = Histogram(
            "embedder_batch_seconds",
            "Time that the network took for a batch.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request; `route` is a template, never the path that a client sent."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def lookup(self, outcome: str) -> None:
        """Count a lookup in the cache: hit, miss or bypass."""
        self._cache.labels(outcome).inc()

    def stage(self, stage: str, seconds: float) -> None:
        """Note how long a stage of a request took."""
        self._stages.labels(stage).observe(seconds)

    def batch(self, windows: int, seconds: float) -> None:
        """Note the size of a batch and how long the network took for it."""
        self._batch_windows.observe(windows)
        self._batch_seconds.observe(seconds)

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed whenever the metrics are read."""
        Gauge(name, help_text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
