"""The architecture as a test: who imports whom, what is public, what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedder
from tests.shared import ROOT

MAY_IMPORT = {
    "embedder": {"embedder"},
    "hear_api": {"hear_api", "embedder"},
    "service": {"service", "embedder"},
    "eval": {"eval", "embedder", "hear_api"},
}
# embedder/cli/__init__.py starts the server, and nothing else in the core may know of it.
LATE_IMPORTS = {("embedder/cli/__init__.py", "service")}
FOREIGN_TO_CORE = {"fastapi", "starlette", "uvicorn", "redis", "torchaudio"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_towards_the_core(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        ours = {module for module in imports(path) if module in MAY_IMPORT}
        late = {module for file, module in LATE_IMPORTS if file == name}
        assert ours - late <= MAY_IMPORT[package], name


def test_the_core_knows_no_web_library() -> None:
    for path in (ROOT / "embedder").rglob("*.py"):
        assert not FOREIGN_TO_CORE & set(imports(path)), path.name


def test_torchaudio_is_nowhere() -> None:
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            assert "torchaudio" not in set(imports(path)), path.name


def test_the_public_names_are_these() -> None:
    assert embedder.__all__ == [
        "MODELS",
        "AudioBlocks",
        "AudioEmbedder",
        "AudioTooLarge",
        "BadAudio",
        "BadRequest",
        "DownloadFailed",
        "EmbedderError",
        "Event",
        "Timestamps",
        "UnknownModel",
        "UnknownTap",
        "UnsupportedAudio",
        "WeightsError",
        "WeightsMismatch",
        "WeightsNotFound",
        "__version__",
        "embed_files",
        "load_audio",
        "stream_audio",
    ]
    for name in embedder.__all__:
        assert getattr(embedder, name) is not None


def test_importing_embedder_leaves_torch_alone() -> None:
    code = "import sys, embedder; sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
