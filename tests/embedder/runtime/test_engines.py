"""Every engine gives the same numbers; one that cannot run says so."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from embedder import AudioEmbedder, load_audio, runtime
from embedder.errors import BadRequest
from embedder.runtime import choose
from embedder.runtime.cuda_engine import halved
from embedder.zoo import MODELS, DyMNConfig, FrameMNConfig
from tests.engine_kit import NETWORKS, TINY, model_of, run_with
from tests.shared import SHARED, needs_shared
from tests.tensors import distance, waves

CPU = torch.device("cpu")
SEQUENCES = sorted(
    {
        model.network.sequence
        for model in MODELS.values()
        if isinstance(model.network, FrameMNConfig) and model.network.sequence not in (None, "gru")
    },
    key=str,
)


@pytest.mark.parametrize("choice", ["torch", "openvino"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_engines_agree(kind: str, choice: str) -> None:
    check_agreement(model_of(NETWORKS[kind]), choice)


@pytest.mark.slow
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_engines_agree_on_every_sequence_model(sequence: Any) -> None:
    spec = replace(NETWORKS["fmn"], network=FrameMNConfig(0.1, sequence, 64))
    check_agreement(model_of(spec), "openvino")


def check_agreement(model: AudioEmbedder, choice: str) -> None:
    other = run_with(model, choice)
    assert other.engine == f"{choice} cpu f32"
    rate = model.sample_rate
    for clips, samples in ((1, 10 * rate), (3, 2 * rate), (2, 100)):
        wave = waves(clips, samples)
        assert distance(other.scene(wave), model.scene(wave)) < 1e-5
    wave = waves(2, rate)
    assert distance(other.timestamps(wave).vectors, model.timestamps(wave).vectors) < 1e-5
    alone = other.timestamps(wave[:1]).vectors
    assert distance(alone, other.timestamps(wave).vectors[:1]) < 1e-5
    if not isinstance(model.spec.network, DyMNConfig):
        assert distance(other.tags(wave), model.tags(wave)) < 1e-5
    if isinstance(model.spec.network, FrameMNConfig):
        frames = other.frame_probabilities(wave).values
        assert distance(frames, model.frame_probabilities(wave).values) < 1e-5


@needs_shared
def test_the_real_checkpoint_agrees_on_real_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_WEIGHTS_DIR", str(SHARED / "weights"))
    paths = sorted((SHARED / "audio" / "esc10").rglob("*.ogg"))[:3]
    assert paths
    eager = AudioEmbedder.load("mn04_as", device="cpu", runtime="eager")
    fast = AudioEmbedder.load("mn04_as", device="cpu", runtime="openvino")
    rough = AudioEmbedder.load("mn04_as", device="cpu", runtime="openvino-bf16")
    for path in paths:
        wave = load_audio(path, eager.sample_rate)
        reference = eager.scene(wave)
        assert distance(fast.scene(wave), reference) < 1e-5
        assert 1e-4 < distance(rough.scene(wave), reference) < 0.2


def test_auto_is_the_fastest_there_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose("auto", CPU) == "openvino"
    assert choose("auto", torch.device("cuda")) == "torch"
    monkeypatch.setattr(runtime, "_has_openvino", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert choose("auto", CPU) == "torch"
    assert "OpenVINO is not installed" in caplog.text


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("tensorrt", "no runtime 'tensorrt'; choose one of auto, eager, torch"),
        ("cuda", "runs on cuda, not on cpu"),
        ("openvino", "pip install openvino"),
    ],
)
def test_an_engine_that_cannot_run_is_refused(
    choice: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_has_openvino", lambda: False)
    with pytest.raises(BadRequest, match=message):
        AudioEmbedder.load(TINY, device="cpu", runtime=choice)


def test_openvino_is_refused_on_a_card() -> None:
    with pytest.raises(BadRequest, match="runs on cpu, not on cuda"):
        choose("openvino", torch.device("cuda"))


@pytest.mark.parametrize("kind", ["mn", "dymn", "fmn+gru"])
def test_half_precision_is_close(kind: str) -> None:
    """What a card computes in float16, computed here."""
    model = model_of(NETWORKS[kind])
    mel = model.frontend(waves(2, model.sample_rate))
    names = [tap for tap in model.taps if tap != "mel"]
    exact = model.backbone.features_by_name(mel, names)
    rough = halved(model.backbone).features_by_name(mel.half(), names)
    for name in names:
        assert distance(rough[name].float(), exact[name]) < 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here")
@pytest.mark.parametrize("choice", ["torch", "cuda"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_card_gives_the_same(kind: str, choice: str) -> None:
    model = model_of(NETWORKS[kind])
    other = run_with(model, "eager").to("cuda")
    other.use(choice)
    for clips, samples in ((1, 10 * model.sample_rate), (5, 10 * model.sample_rate), (2, 12_345)):
        wave = waves(clips, samples)
        for _ in range(2):  # a capture, and a replay
            assert distance(other.scene(wave).cpu(), model.scene(wave)) < 2e-3
