"""A missing extra is one line that names what to install, before any work is done."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from embedder import cli
from embedder.extras import OPTIONAL, require
from eval import __main__
from eval.training import console
from tests.shared import ROOT

PACKAGES = ("embedder", "hear_api", "service", "eval")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# This file runs inside the HEAR kit's own environment, which `python -m eval hear` installs.
INSIDE_THE_KIT = "eval/hear/startup.py"
# What a dependency brings, and what is imported under its name.
BROUGHT = {"starlette": "fastapi", "pydantic_core": "pydantic", "click": "typer"}

MAINS: dict[str, Callable[[], int | None]] = {"embedder": cli.main, "eval": __main__.main}
NEEDS = {
    "embedder export banana -o out.onnx": "onnx",
    "eval probe nowhere --out out.safetensors": "train",
    "eval card nowhere": "train",
    "eval distill nowhere --out out": "train",
    "eval hear --plots --model banana": "train",
    "eval hear-models --tasks banana": "train",
    "eval sed nowhere.tsv nowhere": "sed",
    "eval bench-server --requests 1": "dev",
}


@pytest.mark.parametrize("line", NEEDS)
def test_a_command_without_its_extra_says_so_first(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in OPTIONAL:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit) as end:
        sys.exit(MAINS[line.split()[0]]())
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    [said] = err.splitlines()
    assert "not installed; in the folder of this project: pip install -e" in said
    assert said.endswith(f"'.[{NEEDS[line]}]'")
    assert not list(tmp_path.iterdir())


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


def test_whatever_is_imported_is_a_dependency_or_in_the_table() -> None:
    installed, base = packages_distributions(), named(PROJECT["dependencies"])
    unknown = set()
    for path in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for module in set(imported(path)) - sys.stdlib_module_names - {*PACKAGES, *OPTIONAL}:
            brings = named([BROUGHT.get(module, module), *installed.get(module, [])])
            if not brings & base and name != INSIDE_THE_KIT:
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
