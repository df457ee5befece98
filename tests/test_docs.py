"""What docs/ holds that is made from the code is as the code is now."""

from __future__ import annotations

import json
import runpy

import pytest

from tests.service_kit import fake_app
from tests.shared import ROOT

SNAPSHOT = ROOT / "docs/openapi.json"


def test_the_schema_of_the_server_is_the_one_in_docs() -> None:
    kept = json.loads(SNAPSHOT.read_text("utf-8"))
    assert fake_app(api_key="any").openapi() == kept, "changed on purpose? python docs/openapi.py"


def test_the_command_makes_that_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_ROOT_PATH", "/elsewhere")
    made = runpy.run_path(str(ROOT / "docs/openapi.py"))["schema"]()
    assert made == SNAPSHOT.read_text("utf-8")
