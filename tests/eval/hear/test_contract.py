"""What a HEAR module owes its kit, for every family: stricter than the official validator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import hear_api
from eval.bench.memory import peak_megabytes
from hear_api import HearModel
from tests.hear_kit import SMALLEST, tiny_checkpoint
from tests.tensors import waves

HOP_MS = 50.0


@pytest.fixture(scope="module", params=SMALLEST)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HearModel:
    """Loaded as the kit does with `--model PATH`: the checkpoint alone says what it is."""
    folder = tmp_path_factory.mktemp("weights")
    return hear_api.load_model(str(tiny_checkpoint(SMALLEST[request.param], folder)), device="cpu")


def check(model: HearModel, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Scene and timestamp embeddings after every check that holds for any audio."""
    scene = hear_api.get_scene_embeddings(audio, model)
    vectors, ms = hear_api.get_timestamp_embeddings(audio, model)
    clips, samples = audio.shape
    assert scene.shape == (clips, model.scene_embedding_size)
    assert vectors.shape == (*ms.shape, model.timestamp_embedding_size)
    assert scene.dtype == vectors.dtype == ms.dtype == torch.float32
    assert scene.isfinite().all()
    assert vectors.isfinite().all()
    assert ms.shape[0] == clips
    assert (ms == ms[:1]).all()
    end = samples * 1000 / model.sample_rate
    assert ms[0, 0] == 0
    assert 0 <= end - float(ms[0, -1]) < HOP_MS + 1e-3
    assert ((ms.diff() - HOP_MS).abs() < 1e-3).all()
    return scene, vectors


@pytest.mark.parametrize("samples", [1, 799, 20_001])
def test_any_length_gives_embeddings(
    model: HearModel, samples: int, capfd: pytest.CaptureFixture[str]
) -> None:
    check(model, waves(1, samples, peak=1.0))
    assert capfd.readouterr() == ("", "")


def test_silence_is_embedded(model: HearModel) -> None:
    check(model, torch.zeros(1, model.sample_rate // 4))


def test_a_batch_of_64_agrees_with_its_clips_alone_and_with_itself(model: HearModel) -> None:
    audio = waves(64, model.sample_rate // 12, peak=1.0)
    scene, vectors = check(model, audio)
    again, _ = check(model, audio)
    assert torch.equal(scene, again)
    for index in (0, 63):
        alone, stamps = check(model, audio[index : index + 1])
        scale = float(scene.abs().max())
        assert (alone[0] - scene[index]).abs().max() < 1e-5 * scale
        assert (stamps[0] - vectors[index]).abs().max() < 1e-5 * float(vectors.abs().max())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_fit_into_bounded_memory(model: HearModel) -> None:
    check(model, waves(1, model.sample_rate * 10, peak=1.0))
    before = peak_megabytes()
    check(model, waves(1, model.sample_rate * 600, peak=1.0))
    assert peak_megabytes() - before < 1500


def test_a_checkpoint_alone_names_its_model(model: HearModel, tmp_path: Path) -> None:
    path = tiny_checkpoint(SMALLEST["MNConfig"], tmp_path)
    assert hear_api.load_model(str(path), device="cpu").sample_rate == 32_000
    assert model.sample_rate in (16_000, 32_000)
