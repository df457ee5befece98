"""The architecture as a test: who imports whom, what is public, what importing costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedder
from embedder.cli import late
from tests.shared import ROOT

MAY_IMPORT = {
    "embedder": {"embedder"},
    "hear_api": {"hear_api", "embedder"},
    "service": {"service", "embedder"},
    "eval": {"eval", "embedder", "hear_api"},
}
# The one file of the core that names what other packages do for the command line.
LATE_IMPORTS = "embedder/cli/late.py"
LATE = re.compile(r"(service|eval)(\.\w+)*:\w+$")
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
        assert ours <= MAY_IMPORT[package], name


def test_one_table_names_what_the_command_line_imports_late() -> None:
    for path in (ROOT / "embedder").rglob("*.py"):
        if path.relative_to(ROOT).as_posix() != LATE_IMPORTS:
            strings = (
                n.value
                for n in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(n, ast.Constant)
            )
            names = [text for text in strings if isinstance(text, str) and LATE.match(text)]
            assert not names, path.name
    paths = [late.SERVE, late.SERVER_SETTINGS]
    paths += [
        command.function for group in late.GROUPS.values() for command in group.commands.values()
    ]
    for path in paths:
        assert LATE.match(path), path
        assert callable(late.imported(path)), path


def test_defaults_are_imported_at_no_cost() -> None:
    assert set(imports(ROOT / "embedder" / "defaults.py")) == {"__future__", "typing"}


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
        "AudioEmbedder",
        "EmbedderError",
        "Timestamps",
        "__version__",
        "load_audio",
        "stream_audio",
    ]
    for name in embedder.__all__:
        assert getattr(embedder, name) is not None


def test_importing_embedder_leaves_torch_alone() -> None:
    code = "import sys, embedder; sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
