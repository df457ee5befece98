"""A missing extra is one line that names what to install, before any work is done."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from embedder import cli
from embedder.extras import OPTIONAL, require
from embedder.testing import write_wav
from eval.training import console
from tests.cli_kit import RATE, noise
from tests.shared import ROOT

PACKAGES = ("embedder", "hear_api", "service", "eval")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# This file runs inside the HEAR kit's own environment, which `embedder hear run` installs.
INSIDE_THE_KIT = "eval/hear/startup.py"
# The extras that a package may import from; those of another one only through what it imports.
EXTRAS = {
    "embedder": ("bulk", "onnx", "serve"),  # orjson is of both
    "service": ("serve",),
    "eval": ("train", "mteb", "sed", "dev", "serve"),  # benchmarks start servers
}
# What a dependency brings, and what is imported under its name.
BROUGHT = {
    "starlette": "fastapi",
    "pydantic_core": "pydantic",
    "click": "typer",
    "requests": "pooch",
}

NEEDS = {
    "serve": "serve",
    "embed nowhere.wav -o out.parquet": "bulk",
    "export banana -o out.onnx": "onnx",
    "train probe nowhere --out out.safetensors": "train",
    "score card nowhere": "train",
    "train distill nowhere --out out": "train",
    "hear run --plots --model banana": "train",
    "hear models --tasks banana": "train",
    "score events nowhere.tsv nowhere": "sed",
    "bench server --requests 1": "dev",
}
# The core alone: what a model, the HEAR module and the command line do without any extra.
CORE = """
import sys

from embedder.extras import OPTIONAL

sys.modules.update(dict.fromkeys(OPTIONAL))
import hear_api
import torch

from embedder.cli import main

try:
    from embedder import embed_files
except ImportError as error:
    assert "[bulk]" in str(error)
else:
    raise AssertionError("pyarrow is hidden")
model = hear_api.load_model(name="sprout04", device="cpu")
assert hear_api.get_scene_embeddings(torch.zeros(1, 16_000), model).shape[0] == 1
assert main(["models", "sprout04"]) == 0
sys.exit(main(["tag", sys.argv[1], "--top", "1", "--device", "cpu", "--workers", "1"]))
"""


@pytest.mark.parametrize("line", NEEDS)
def test_a_command_without_its_extra_says_so_first(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in OPTIONAL:
        monkeypatch.setitem(sys.modules, module, None)
    code = cli.main(line.split())
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    [said] = err.splitlines()
    assert "not installed; in the folder of this project: pip install -e" in said
    assert said.endswith(f"'.[{NEEDS[line]}]'")
    assert not list(tmp_path.iterdir())


def test_the_core_alone_embeds_and_tags(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "noise.wav", noise(1.0), RATE)
    done = subprocess.run(
        [sys.executable, "-c", CORE, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert str(path) in done.stdout


def test_a_package_that_is_missed_late_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "service.__main__", None)
    monkeypatch.setattr(cli.late, "imported", lambda _: import_module("redis.nothing"))
    assert cli.main(["bench", "soak"]) == 2
    assert "redis is not installed" in capsys.readouterr().err


def test_several_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sklearn", "onnx"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Exception, match=r"scikit-learn and onnx are not .* -e '\.\[onnx,train\]'"):
        require("sklearn", "scipy", "onnx")


def test_training_without_matplotlib_says_so_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list[str] = []

    def train() -> bool:
        said.append(capsys.readouterr().err)
        return True

    trainer: Any = SimpleNamespace(run=train, rows=[], folder=Path())
    console.run(trainer)
    assert "no curve will be drawn: matplotlib is not installed" in said[0]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def named(requirements: list[str]) -> set[str]:
    """Names of packages without versions, as pip compares them."""
    names = (re.match(r"[\w.-]+", line) for line in requirements)
    return {match[0].lower().replace("_", "-") for match in names if match}


def allowed(path: Path) -> set[str]:
    """Modules that a file may import, beside Python's and ours."""
    extras = EXTRAS.get(path.relative_to(ROOT).parts[0], ())
    modules = {module for module, package in OPTIONAL.items() if package.extra in extras}
    return modules | ({"pydantic"} if "serve" in extras else set())


def test_whatever_is_imported_is_a_dependency_or_in_the_table() -> None:
    installed, base = packages_distributions(), named(PROJECT["dependencies"])
    unknown = set()
    for path in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for module in set(imported(path)) - sys.stdlib_module_names - {*PACKAGES}:
            source = BROUGHT.get(module, module)
            brings = named([source, *installed.get(module, [])])
            if not brings & base and source not in allowed(path) and name != INSIDE_THE_KIT:
                unknown.add((name, module))
    assert not unknown


def test_the_extras_hold_what_the_table_says() -> None:
    extras = {extra: named(lines) for extra, lines in PROJECT["optional-dependencies"].items()}
    for module, package in OPTIONAL.items():
        if module != "dcase_util":  # sed_eval brings it
            assert named([package.name]) <= extras[package.extra]


def test_the_long_tests_run_with_every_extra() -> None:
    [command] = re.findall(
        r"\.extras: .*\n\t\$\(INSTALL\) --editable '\.\[(.+)\]'", (ROOT / "Makefile").read_text()
    )
    extras = PROJECT["optional-dependencies"]
    installed = set(command.split(","))
    for line in (line for name in sorted(installed) for line in extras[name]):
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            installed |= requirement.extras
    assert installed == set(extras)
