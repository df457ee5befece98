"""Loading by name or file, moving, copying and showing a model."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embedder import AudioEmbedder
from embedder.errors import BadRequest, UnknownModel, WeightsMismatch, WeightsNotFound
from tests.hear_kit import tiny_checkpoint
from tests.tensors import waves

TINY = "mn01_as"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(TINY, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def model(path: Path) -> AudioEmbedder:
    return AudioEmbedder.load(path, device="cpu")


def test_a_path_is_as_good_as_its_name(path: Path, model: AudioEmbedder) -> None:
    clip = waves(1, 8_000)
    for name in (path, str(path)):
        loaded = AudioEmbedder.load(name, device=torch.device("cpu"), runtime="eager")
        assert loaded.name == TINY
        assert loaded.weights_sha256 == model.weights_sha256
        assert loaded.scene(clip).shape == (1, loaded.scene_embedding_size)


def test_what_is_no_checkpoint_says_why(path: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save({}, weights)
    refused: list[tuple[Any, type[Exception], str]] = [
        (tmp_path, WeightsNotFound, "is a folder; name a .safetensors file in it"),
        (str(tmp_path), WeightsNotFound, "is a folder"),
        (path.parent / "none.safetensors", WeightsNotFound, "no checkpoint .*none.safetensors"),
        ("none.safetensors", WeightsNotFound, "name an existing .safetensors file"),
        ("none/of/these", WeightsNotFound, "no checkpoint 'none/of/these'"),
        (Path("banana"), WeightsNotFound, "no checkpoint 'banana'"),
        (weights, WeightsMismatch, r"load\('mn10_as', weights='.*weights.pt'\)"),
        ("banana", UnknownModel, "no model 'banana'"),
    ]
    for name, kind, message in refused:
        with pytest.raises(kind, match=message):
            AudioEmbedder.load(name, device="cpu")


COPIES: dict[str, Callable[[AudioEmbedder], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: torch.load(_saved(model), weights_only=False),
    "to": lambda model: model.to("cpu").float().cpu(),
}


def _saved(model: AudioEmbedder) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_a_used_model_work(way: str, model: AudioEmbedder) -> None:
    clip = waves(1, 8_000)
    expected = model.scene(clip)
    assert torch.allclose(COPIES[way](model).scene(clip), expected, atol=1e-5)


CASTS: dict[str, Callable[[AudioEmbedder], object]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "to": lambda model: model.to(torch.bfloat16),
    "to device and type": lambda model: model.to("cpu", torch.float16),
    "a module around it": lambda model: torch.nn.Sequential(model).half(),
}


@pytest.mark.parametrize("way", CASTS)
def test_weights_stay_float32(way: str, model: AudioEmbedder) -> None:
    with pytest.raises(BadRequest, match=r"stay float32.*openvino-bf16.*runtime='cuda'"):
        CASTS[way](model)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model.scene(waves(1, 8_000)).dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA card here")
@pytest.mark.parametrize("move", [lambda model: model.cuda(), lambda model: model.to("cuda:1")])
def test_a_model_cannot_go_where_no_card_is(
    move: Callable[[AudioEmbedder], object], model: AudioEmbedder
) -> None:
    with pytest.raises(BadRequest, match=r"cannot be moved there: .*(CUDA|NVIDIA)"):
        move(model)


def test_a_model_shows_itself_on_one_screen(model: AudioEmbedder) -> None:
    shown = repr(model)
    for fact in (
        f"AudioEmbedder {TINY}",
        "32000 Hz",
        f"{model.scene_embedding_size} values",
        *model.taps,
        "527: Speech",
        f"{sum(value.numel() for value in model.backbone.parameters()):,}",
        model.weights_sha256,
        model.runtime,
        "cpu",
    ):
        assert fact in shown
    lines = shown.splitlines()
    assert len(lines) <= 12
    assert all(len(line) <= 100 for line in lines)
    every = AudioEmbedder.build(TINY, taps=list(model.tap_sizes))
    assert "random" in repr(every)
    assert max(map(len, repr(every).splitlines())) <= 100
