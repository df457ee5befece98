"""What docs/ holds that is made from the code is as the code is now."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys

import pytest

from tests.service_kit import fake_app
from tests.shared import ROOT

SCHEMA = ROOT / "docs/openapi.json"
IMPORTS = ROOT / "docs/imports.svg"
ARCHITECTURE = ROOT / "docs/architecture.md"


def test_the_schema_of_the_server_is_the_one_in_docs() -> None:
    kept = json.loads(SCHEMA.read_text("utf-8"))
    assert fake_app(api_key="any").openapi() == kept, "changed on purpose? python docs/openapi.py"


def test_the_command_makes_that_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_ROOT_PATH", "/elsewhere")
    made = runpy.run_path(str(ROOT / "docs/openapi.py"))["schema"]()
    assert made == SCHEMA.read_text("utf-8")


def test_the_picture_of_the_imports_is_that_of_the_code() -> None:
    drawn = runpy.run_path(str(ROOT / "docs/draw_imports.py"))["picture"]()
    assert drawn == IMPORTS.read_text("utf-8"), "imports changed: python docs/draw_imports.py"


def test_the_architecture_names_what_there_is() -> None:
    text = " ".join(ARCHITECTURE.read_text("utf-8").split())
    files = set(re.findall(r"`([\w/]+(?:\.py|\.md|/))`", text))
    assert "embedder/outputs.py" in files
    missing = {file for file in files if not (ROOT / file).exists()}
    # "`file.py`: `Name`, `Class.method`" and "`NAME` in `file.py`".
    named = re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`,? ?)+)", text)
    named += [
        (file, f"`{name}`") for name, file in re.findall(r"`(\w+)` (?:in|of) `([^`]+\.py)`", text)
    ]
    assert len(named) > 20
    for file, names in named:
        code = (ROOT / file).read_text("utf-8") if (ROOT / file).exists() else ""
        for name in re.findall(r"[\w.]+", names.replace("`", " ")):
            last = re.escape(name.rpartition(".")[2])
            if not re.search(rf"(?:def|class) {last}\b|^{last}\b.* = ", code, re.MULTILINE):
                missing.add(f"{file}: {name}")
    assert not missing, "\n".join(sorted(missing))


@pytest.mark.slow
def test_a_request_goes_the_way_that_is_told() -> None:
    text = ARCHITECTURE.read_text("utf-8")
    steps = text.partition("## POST /embed")[2].partition("`python docs/")[0]
    told = set(re.findall(r"`([\w/]+\.py)`", steps))
    command = [sys.executable, str(ROOT / "docs/trace_request.py")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    traced = set(re.findall(r"^([\w/]+\.py):", printed, re.MULTILINE))
    assert told
    assert told <= traced
