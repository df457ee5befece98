"""Whatever a checkpoint holds, it is loaded or refused, and the error is ours."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embedder import AudioEmbedder, checkpoints
from embedder.described import spec_to_json
from embedder.errors import EmbedderError, WeightsMismatch
from embedder.probe import METADATA_KEY as PROBE_KEY
from embedder.probe import Probe
from embedder.zoo import MODELS
from tests.hear_kit import tiny_checkpoint
from tests.hostile_checkpoints import hostile

SPEC = MODELS["mn01_as"]


@pytest.fixture(scope="module")
def model() -> AudioEmbedder:
    torch.manual_seed(3)
    return AudioEmbedder.build("mn01_as")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network.width", 1e9),
        ("network.width", float("nan")),
        ("network.width", "1.0"),
        ("network.width", True),
        ("network.strides", [2, 2, 2]),
        ("network.strides", 2),
        ("network.head", "pickle"),
        ("network.n_classes", 10**6),
        ("network.unheard_of", 1),
        ("mel.n_mels", 0),
        ("mel.n_mels", -64),
        ("mel.n_mels", 64.5),
        ("mel.hop", 0),
        ("mel.hop", 1),
        ("mel.window", 2048),
        ("mel.fmin", 15_000.0),
        ("mel.fmax", 16_001.0),
        ("mel.floor", float("nan")),
        ("mel", [1]),
        ("family", ["mn"]),
        ("family", "vit"),
        ("taps", "mel"),
        ("taps", []),
        ("taps", ["mel"] * 1_000),
        ("labels", ["cat"]),
        ("labels", [1] * 527),
        ("labels", ["\ud800"] * 527),
        ("labels", ["x" * 10_000] * 527),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(
    field: str, value: object, tmp_path: Path
) -> None:
    described = {**spec_to_json(SPEC), "labels": [f"class {n}" for n in range(527)]}
    *parents, last = field.split(".")
    inside = described
    for parent in parents:
        inside = inside[parent]
    inside[last] = value
    path = tmp_path / "odd.safetensors"
    save_file({"x": torch.zeros(1)}, path, {checkpoints.METADATA_KEY: json.dumps(described)})
    with pytest.raises(WeightsMismatch, match="describes no model"):
        AudioEmbedder.load(str(path), device="cpu")


def test_bombs_are_not_unpacked(model: AudioEmbedder, tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save(model.backbone.state_dict(), plain)
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(bomb, "w") as packed:
        for entry in whole.namelist():
            packed.writestr(entry, whole.read(entry), zipfile.ZIP_DEFLATED)
        packed.writestr("archive/data/bomb", bytes(1 << 24), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsMismatch, match="larger inside than outside"):
        AudioEmbedder.load("mn01_as", weights=bomb, device="cpu")


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.zeros(1)},
        {"x": torch.zeros(1).to_sparse()},
        {"x": torch.zeros(1, dtype=torch.complex64)},
        {"x": torch.zeros(1, device="meta")},
    ],
)
def test_tensors_that_are_no_weights_are_refused(state: object, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(WeightsMismatch, match="no plain state dict"):
        AudioEmbedder.load("mn01_as", weights=tmp_path / "odd.pt", device="cpu")


def test_whatever_a_file_holds_the_error_is_ours(model: AudioEmbedder, tmp_path: Path) -> None:
    state = model.backbone.state_dict()
    plain, old = tmp_path / "plain.pt", tmp_path / "old.pt"
    torch.save(state, plain)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    originals = [tiny_checkpoint("mn01_as", tmp_path), plain, old]

    def load(path: Path) -> object:
        if path.suffix == ".safetensors":
            return AudioEmbedder.load(str(path), device="cpu", runtime="eager")
        return AudioEmbedder.load("mn01_as", path, device="cpu", runtime="eager")

    files = hostile(originals, _folder(tmp_path), 150, checkpoints.METADATA_KEY)
    assert sum(_refused(load, path) for path in files) > 75


def test_whatever_a_probe_holds_the_error_is_ours(tmp_path: Path) -> None:
    layers = ((np.ones((40, 3), np.float32), np.zeros(3, np.float32)),)
    ones = np.ones(40, np.float32)
    path = tmp_path / "probe.safetensors"
    Probe(("a", "b", "c"), "mn01_as", "", ("b5",), True, ones, ones, layers).save(path)
    assert Probe.load(path).labels == ("a", "b", "c")
    files = hostile([path], _folder(tmp_path), 250, PROBE_KEY)
    assert sum(_refused(Probe.load, file) for file in files) > 125


def _refused(load: Callable[[Path], object], path: Path) -> bool:
    """Whether it is refused as it should be; any other error is the test's failure."""
    try:
        load(path)
    except EmbedderError:
        return True
    return False


def _folder(parent: Path) -> Path:
    folder = parent / "hostile"
    folder.mkdir()
    return folder
