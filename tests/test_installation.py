"""The lock, the images and the README agree with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.shared import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
BOUNDS = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"])
assert BOUNDS
MINORS = range(int(BOUNDS[1]), int(BOUNDS[2]))


def asked_for() -> Iterator[Requirement]:
    """What the package and its extras require, without this package itself."""
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        yield from (r for r in map(Requirement, lines) if r.name != PROJECT["name"])


def locked() -> Iterator[Requirement]:
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            yield Requirement(line)


@pytest.mark.parametrize("minor", MINORS)
def test_the_lock_pins_what_is_asked_for(minor: int) -> None:
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    linux |= {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.5"}
    pins = {
        canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("=="))
        for pin in locked()
        if pin.marker is None or pin.marker.evaluate(linux)
    }
    for wish in asked_for():
        assert pins[canonicalize_name(wish.name)] in wish.specifier, wish


def test_every_mention_of_a_python_is_a_supported_one() -> None:
    oldest, newest = f"3.{MINORS[0]}", f"3.{MINORS[-1]}"
    assert f"Python {oldest} to {newest}" in (ROOT / "README.md").read_text("utf-8")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PYPROJECT["tool"]["ruff"]["target-version"] == oldest.replace("3.", "py3")
    for device in ("cpu", "cuda"):
        image = (ROOT / f"docker/Dockerfile.{device}").read_text("utf-8")
        python = re.search(r"^ARG PYTHON=3\.(\d+)$", image, re.MULTILINE)
        assert python, device
        assert int(python[1]) in MINORS


def test_torch_alone_is_looked_up_in_an_index_of_its_own() -> None:
    for name in ("Makefile", "docker/Dockerfile.cpu"):
        text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
        steps = [line for line in text.splitlines() if "index-url" in line]
        assert len(steps) == 1, name
        assert re.search(r"--no-deps --index-url \S+ torch\b", steps[0]), name
        assert "EXTRA_INDEX" not in text, name


def test_the_smoke_names_tests_that_there_are() -> None:
    for line in (ROOT / "tests/smoke.txt").read_text("utf-8").splitlines():
        path, _, name = line.partition("::")
        assert f"def {name.partition('[')[0]}" in (ROOT / path).read_text("utf-8"), line


def test_an_sdist_holds_what_the_tests_read() -> None:
    sdist = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    text = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    read = set(re.findall(r'ROOT / f?"([^"/{]+)', text))
    assert read >= {"docs", "examples", "docker", "README.md", "constraints.txt"}
    assert {f"/{name}" for name in read} - {"/pyproject.toml"} <= set(sdist)
    for entry in sdist:
        assert (ROOT / entry.removeprefix("/")).exists(), entry
