"""Fixtures of the tests of engines."""

from __future__ import annotations

from typing import Any

import openvino
import pytest


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, str], Any]]:
    """The options and the network of all that OpenVINO compiles."""
    networks: list[tuple[dict[str, str], Any]] = []
    compile_model = openvino.Core.compile_model

    def noted(core: Any, model: Any, device: str, options: dict[str, str]) -> Any:
        network = compile_model(core, model, device, options)
        networks.append((options, network))
        return network

    monkeypatch.setattr(openvino.Core, "compile_model", noted)
    return networks
