"""No engine outlives the weights that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embedder import AudioEmbedder
from embedder.runtime import create, lazy
from embedder.runtime.base import Engine, EngineInput
from eval.dymn_inspections import inspected
from tests.engine_kit import (
    NETWORKS,
    TINY,
    add_hook,
    assign_weights,
    model_of,
    move_statistics,
    replace_module,
    run_with,
    write_through_data,
)
from tests.hear_kit import tiny_checkpoint
from tests.tensors import distance, waves


@pytest.mark.parametrize("choice", ["eager", "torch", "openvino"])
def test_new_weights_show_at_once(choice: str) -> None:
    model = run_with(model_of(NETWORKS["mn"]), choice)
    wave = waves(1, 16_000)
    before = model.scene(wave)
    other = AudioEmbedder("other", model.spec)
    model.backbone.load_state_dict(other.backbone.state_dict())
    assert distance(model.scene(wave), before) > 0.01
    assert distance(model.scene(wave), other.scene(wave)) < 1e-5


def test_weights_loaded_in_inference_mode_do_too(tmp_path: Path) -> None:
    path = tiny_checkpoint(TINY, tmp_path)
    with torch.inference_mode():
        model = AudioEmbedder.load(str(path), device="cpu")
        assert model.scene(waves(1, 1000)).shape == (1, model.scene_embedding_size)


def test_inspections_show_whatever_runs_the_network() -> None:
    model = run_with(model_of(NETWORKS["dymn"]), "torch")
    wave = waves(2, 16_000)
    before = model.scene(wave)
    with inspected(model, "conv/uniform"):
        assert distance(model.scene(wave), before) > 1e-4
    assert model.runtime == "torch"
    assert torch.equal(model.scene(wave), before)


@pytest.mark.parametrize("choice", ["torch", "openvino"])
@pytest.mark.parametrize("change", [move_statistics, replace_module, assign_weights, add_hook])
def test_whatever_changes_after_the_first_use_shows(
    change: Callable[[Any], None], choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def noted(choice: str, network: EngineInput) -> Engine:
        made.append(choice)
        return create(choice, network)

    monkeypatch.setattr(lazy, "create", noted)
    model = run_with(model_of(NETWORKS["mn"]), choice)
    before = early_and_late(model)
    assert torch.equal(early_and_late(model), before)
    assert made == [choice]  # an engine stays until something changes
    change(model.backbone)
    after = early_and_late(model)
    assert distance(after, before) > 1e-4
    assert distance(after, early_and_late(run_with(model, "eager"))) < 1e-5


def early_and_late(model: AudioEmbedder) -> Tensor:
    return model.join(model.features(waves(1, 8_000), taps=["b1", "logits"]), ["b1", "logits"])


def test_writes_through_data_show_when_asked() -> None:
    model = run_with(model_of(NETWORKS["mn"]), "torch")
    before = model.scene(waves(1, 8_000))
    write_through_data(model.backbone)
    model.use(model.runtime)
    assert distance(model.scene(waves(1, 8_000)), before) > 0.001
