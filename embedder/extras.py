"""The packages that only some commands need, and how to install them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from embedder.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Package:
    """A package by the name that pip knows, and the extra of this project that installs it."""

    name: str
    extra: str


# By the name that is imported; pyproject.toml lists what an extra holds. pydantic, which typer
# brings, is never missing.
OPTIONAL: Final[Mapping[str, Package]] = {
    "anyio": Package("anyio", "serve"),
    "cachetools": Package("cachetools", "serve"),
    "fastapi": Package("fastapi", "serve"),
    "fastapi_offline": Package("fastapi-offline", "serve"),
    "httpx": Package("httpx", "serve"),
    "orjson": Package("orjson", "serve"),
    "prometheus_client": Package("prometheus-client", "serve"),
    "pydantic_settings": Package("pydantic-settings", "serve"),
    "python_multipart": Package("python-multipart", "serve"),
    "redis": Package("redis", "serve"),
    "uvicorn": Package("uvicorn", "serve"),
    "pyarrow": Package("pyarrow", "bulk"),
    "matplotlib": Package("matplotlib", "train"),
    "scipy": Package("scipy", "train"),
    "sklearn": Package("scikit-learn", "train"),
    "mteb": Package("mteb", "mteb"),
    "dcase_util": Package("dcase_util", "sed"),
    "pandas": Package("pandas", "sed"),
    "sed_eval": Package("sed_eval", "sed"),
    "sed_scores_eval": Package("sed_scores_eval", "sed"),
    "onnx": Package("onnx", "onnx"),
    "onnxruntime": Package("onnxruntime", "onnx"),
    "psutil": Package("psutil", "dev"),
}


def require(*modules: str) -> None:
    """Raise BadRequest, which says what to install, unless all of these modules are installed.

    A command calls this before it does any work.
    """
    missing = [OPTIONAL[module] for module in modules if find_spec(module) is None]
    if missing:
        raise BadRequest(_advice(missing))


def require_extra(extra: str) -> None:
    """Raise BadRequest, which says what to install, unless the whole extra is installed."""
    require(*(module for module, package in OPTIONAL.items() if package.extra == extra))


def advice(module: str) -> str | None:
    """What to install for a module that could not be imported; None for modules of no extra."""
    package = OPTIONAL.get(module.partition(".")[0])
    return None if package is None else _advice([package])


def _advice(missing: Iterable[Package]) -> str:
    packages = list(missing)
    names = " and ".join(package.name for package in packages)
    extras = ",".join(sorted({package.extra for package in packages}))
    return (
        f"{names} {'is' if len(packages) == 1 else 'are'} not installed; "
        f"in the folder of this project: pip install -e '.[{extras}]'"
    )
