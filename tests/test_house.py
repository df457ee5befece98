"""The house as tests: who imports whom, what has which name and size, what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import embedder
from embedder.cli import late
from tests.shared import ROOT

PACKAGES: Final = ("embedder", "hear_api", "service", "eval")
SCRIPTS: Final = ("tests", "docs", "examples")
FILE_LINES: Final = 300
FUNCTION_LINES: Final = 60
MODEL_PAGE_LINES: Final = 250
# The one file of the core that names what other packages do for the command line.
LATE_IMPORTS = "embedder/cli/late.py"
LATE = re.compile(r"(service|eval)(\.\w+)*:\w+$")


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def n_lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text("utf-8")))


def test_one_table_names_what_the_command_line_imports_late() -> None:
    for path in (ROOT / "embedder").rglob("*.py"):
        if path.relative_to(ROOT).as_posix() != LATE_IMPORTS:
            strings = (n.value for n in nodes(path) if isinstance(n, ast.Constant))
            names = [text for text in strings if isinstance(text, str) and LATE.match(text)]
            assert not names, path.name
    functions = [late.SERVE, late.SERVER_SETTINGS]
    functions += [
        command.function for group in late.GROUPS.values() for command in group.commands.values()
    ]
    for function in functions:
        assert LATE.match(function), function
        assert callable(late.imported(function)), function


def test_imports_keep_the_contracts_of_pyproject() -> None:
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_no_two_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    for path in sources(*PACKAGES):
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    twice = [f"{name}: {', '.join(files)}" for name, files in sorted(homes.items()) if files[1:]]
    assert not twice, "\n".join(twice)


def test_no_file_is_too_long_to_read_at_once() -> None:
    files = sources(*PACKAGES, *SCRIPTS)
    lengths = Counter({path.relative_to(ROOT).as_posix(): n_lines(path) for path in files})
    long = [f"{name}: {lines}" for name, lines in lengths.most_common() if lines > FILE_LINES]
    assert not long, "\n".join(long)
    assert lengths["embedder/model.py"] < MODEL_PAGE_LINES


def test_no_function_is_longer_than_a_screen() -> None:
    long = []
    for path in sources(*PACKAGES, *SCRIPTS):
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}")
    assert not long, "\n".join(long)


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
