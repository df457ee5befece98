"""What docs/ holds that is made from the code is as the code is now."""

from __future__ import annotations

import json
import runpy

import pytest

from tests.service_kit import fake_app
from tests.shared import ROOT

SCHEMA = ROOT / "docs/openapi.json"
IMPORTS = ROOT / "docs/imports.svg"


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
