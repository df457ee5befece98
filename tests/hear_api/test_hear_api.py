"""The HEAR contract, stricter than the official validator checks it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hear_api
from embedder import AudioEmbedder
from embedder.errors import BadAudio, UnknownModel, UnknownTap
from embedder.streams import output_of
from hear_api import HearModel
from tests.shared import SHARED, needs_shared
from tests.tensors import waves


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mn01.pt"
    torch.save(AudioEmbedder.build("mn01_as").backbone.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def model(weights: str) -> HearModel:
    return hear_api.load_model(weights, name="mn01_as", device="cpu")


def test_the_model_is_what_hear_asks_for(model: HearModel) -> None:
    assert isinstance(model, torch.nn.Module)
    for attribute in ("sample_rate", "scene_embedding_size", "timestamp_embedding_size"):
        assert type(getattr(model, attribute)) is int
    assert model.sample_rate == 32_000


@pytest.mark.parametrize("samples", [1, 500, 16_000, 71_234])
@pytest.mark.parametrize("clips", [1, 3])
def test_embeddings_have_the_promised_shape_and_type(
    model: HearModel, clips: int, samples: int
) -> None:
    audio = waves(clips, samples, peak=1.0)
    scene = hear_api.get_scene_embeddings(audio, model)
    assert scene.shape == (clips, model.scene_embedding_size)
    assert scene.dtype == torch.float32
    vectors, ms = hear_api.get_timestamp_embeddings(audio, model)
    assert vectors.shape == (clips, ms.shape[1], model.timestamp_embedding_size)
    assert vectors.dtype == ms.dtype == torch.float32
    assert not scene.requires_grad
    assert not vectors.requires_grad


def test_the_identity_is_of_all_that_decides_the_numbers(model: HearModel) -> None:
    identity = json.loads(json.dumps(model.identity))
    assert identity == model.identity
    assert identity["weights_sha256"] == model.embedder.weights_sha256
    assert identity["engine"] == model.embedder.engine
    hop = output_of(model.embedder, "embedding", "timestamps", hop_ms=25)
    changed = {**identity, **HearModel(model.embedder, timestamps=hop).identity}
    assert {key for key in identity if changed[key] != identity[key]} == {"timestamps"}


def test_timestamps_never_drift(model: HearModel) -> None:
    samples = 60 * model.sample_rate + 17
    hop = output_of(model.embedder, "embedding", "timestamps", hop_ms=500.0)
    sparse = HearModel(model.embedder, timestamps=hop)
    _, ms = hear_api.get_timestamp_embeddings(waves(1, samples, peak=1.0), sparse)
    assert ms[0, 0] == 0
    assert (ms.diff() - 500.0).abs().max() < 1e-3
    assert 0 <= samples / model.sample_rate * 1000 - ms[0, -1] < 500.0


def test_repeated_calls_agree_to_the_bit(model: HearModel) -> None:
    audio = waves(2, 20_000, peak=1.0)
    assert torch.equal(
        hear_api.get_scene_embeddings(audio, model), hear_api.get_scene_embeddings(audio, model)
    )


def test_neighbours_in_the_batch_do_not_matter(model: HearModel) -> None:
    audio = waves(64, 8_000, peak=1.0)
    batched = hear_api.get_scene_embeddings(audio, model)
    alone = torch.cat([hear_api.get_scene_embeddings(clip[None], model) for clip in audio[::16]])
    assert torch.allclose(batched[::16], alone, rtol=1e-5, atol=1e-5)


def test_options_choose_taps_and_windows(weights: str) -> None:
    model = hear_api.load_model(
        weights, name="mn01_as", device="cpu", taps=["mel", "se5"], timestamp_hop_ms=25
    )
    assert model.scene_embedding_size == 128 + model.embedder.tap_sizes["se5"]
    _, ms = hear_api.get_timestamp_embeddings(waves(1, 32_000, peak=1.0), model)
    assert ms[0, :3].tolist() == [0.0, 25.0, 50.0]


def test_unknown_options_are_refused(weights: str) -> None:
    with pytest.raises(UnknownModel):
        hear_api.load_model(weights, name="mn99")
    with pytest.raises(UnknownTap):
        hear_api.load_model(weights, name="mn01_as", taps=["b17"])
    with pytest.raises(TypeError, match="colour"):
        hear_api.load_model(weights, colour="red")  # type: ignore[call-arg]


def test_what_is_no_batch_of_sounds_is_refused(model: HearModel) -> None:
    for embed in (hear_api.get_scene_embeddings, hear_api.get_timestamp_embeddings):
        with pytest.raises(BadAudio, match="mono"):
            embed(torch.zeros(2, 2, 100), model)
        with pytest.raises(BadAudio, match=r"x.mean\(1\)"):
            embed(torch.zeros(1_000, 2), model)


def test_importing_stays_light() -> None:
    code = (
        "import sys, hear_api; heavy = {'fastapi', 'httpx', 'redis', 'pyarrow', 'typer', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(hear_api.__file__).parents[1],
    )
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""


@needs_shared
def test_the_default_model_loads_with_its_published_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDDER_WEIGHTS_DIR", str(SHARED / "weights"))
    model = hear_api.load_model(name="mn04_as")
    assert hear_api.get_scene_embeddings(waves(1, 32_000, peak=1.0), model).shape == (1, 320)
