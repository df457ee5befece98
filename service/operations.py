"""Routes for operators (health, metrics, information), and the page for people."""

from __future__ import annotations

from importlib import resources
from importlib.metadata import version
from typing import Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse

import embedder
from service.errors import Hung
from service.metrics import CONTENT_TYPE
from service.openapi import ERRORS, OPEN_ERRORS, READ_ERRORS
from service.schemas import Info
from service.state import require_key, service_of

_LIBRARIES: Final = ("torch", "av", "soxr", "numpy", "fastapi")
_LIMITS: Final = (
    *("max_bytes", "max_json_bytes", "max_inputs", "max_seconds", "max_decode_seconds"),
    *("max_window_ms", "max_windows", "max_windows_seconds", "max_values", "body_seconds"),
    "max_requests",
)
_PAGE: Final = resources.files("service").joinpath("web/index.html")
_PAGE_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; connect-src 'self'; media-src blob:; img-src data:; "
        "script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    )
}

router = APIRouter(tags=["operations"], responses=OPEN_ERRORS)


@router.get("/livez", responses={503: ERRORS[503]})
async def livez(request: Request) -> dict[str, str | float]:
    """Tell whether the process answers and no batch hangs, and the oldest batch's age."""
    models = service_of(request).models
    seconds = models.oldest_batch_seconds
    if models.hung:
        raise Hung(seconds)
    return {"status": "alive", "oldest_batch_seconds": round(seconds, 3)}


@router.get("/readyz", responses={503: ERRORS[503]})
async def readyz(request: Request) -> dict[str, str]:
    """Tell whether a request would be served now: the default model has made a forward pass."""
    service_of(request).check_ready()
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return all metrics in Prometheus's text format."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE)


@router.get(
    "/info", response_model=Info, responses=READ_ERRORS, dependencies=[Depends(require_key)]
)
async def info(request: Request) -> Info:
    """Describe the server: its loaded models, limits, and the versions of libraries."""
    service = service_of(request)
    settings = service.settings
    models = [
        {
            "name": name,
            "sha256": served.model.weights_sha256,
            "sample_rate": served.model.sample_rate,
            "taps": served.model.taps,
            "labels": len(served.model.labels),
            "device": str(served.model.device),
        }
        for name, served in service.models.loaded.items()
    ]
    return Info(
        version=embedder.__version__,
        models=models,
        limits={name: getattr(settings, name) for name in _LIMITS},
        cache="redis" if settings.redis_url else "memory" if settings.cache_bytes else "none",
        versions={library: version(library) for library in _LIBRARIES},
    )


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> Response:
    """Return the page to try the server in a browser."""
    return HTMLResponse(_PAGE.read_bytes(), headers=_PAGE_HEADERS)
