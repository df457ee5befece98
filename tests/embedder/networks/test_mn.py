"""Our numbers against the reference implementation's, every array of every MN golden file."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import pytest
import torch

from embedder.frontend import LogMel, mel_bank
from embedder.model import AudioEmbedder
from embedder.zoo import MEL_16K, MEL_32K, MODELS, MNConfig, ModelSpec
from tests import golden
from tests.shared import SHARED, needs_shared

pytestmark = needs_shared

TOLERANCE = 1e-4
WEIGHTS = SHARED / "weights" / "mn04_as_mAP_432.pt"

MEL_VARIANTS = {
    "default": MEL_32K,
    "hop20": replace(MEL_32K, hop=640),
    "hop5": replace(MEL_32K, hop=160),
    "mels40": replace(MEL_32K, n_mels=40),
    "mels64": replace(MEL_32K, n_mels=64),
    "mels256": replace(MEL_32K, n_mels=256),
}


def _with(name: str, **network: object) -> ModelSpec:
    spec = MODELS[name]
    assert isinstance(spec.network, MNConfig)
    return replace(spec, network=replace(spec.network, **network))  # type: ignore[arg-type]


# golden file -> architecture, name in state_dicts.json
SEEDED = {
    "mn01": (MODELS["mn01_as"], "mn01"),
    "mn05": (MODELS["mn05_as"], "mn05"),
    "mn10": (MODELS["mn10_as"], "mn10"),
    "mn20": (MODELS["mn20_as"], "mn20"),
    "mn40": (MODELS["mn40_as"], "mn40"),
    "mn10_fc": (MODELS["mn10_as_fc"], "mn10_fc"),
    "mn10_mels64": (MODELS["mn10_as_mels_64"], "mn10_mels64"),
    "mn10_hop20": (MODELS["mn10_as_hop_20"], "mn10"),
    "mn04_mha": (_with("mn04_as", head="multihead_attention_pooling"), "mn04_mha"),
    "mn04_fc_s2211": (
        _with("mn04_as", head="fully_convolutional", strides=(2, 2, 1, 1)),
        "mn04_fc_s2211",
    ),
}


@pytest.mark.parametrize("variant", MEL_VARIANTS)
def test_log_mel(variant: str) -> None:
    wave = golden.clip("dog")[None, :96_000]
    ours = LogMel(MEL_VARIANTS[variant])(wave)[0]
    assert golden.relative_error(ours, golden.arrays("mel")[f"mel_{variant}"]) <= TOLERANCE


def test_log_mel_at_16_khz() -> None:
    wave = golden.clip("dog", 16_000)[None, :48_000]
    ours = LogMel(MEL_16K)(wave)[0]
    assert golden.relative_error(ours, golden.arrays("mel")["mel_fmn_16k"]) <= TOLERANCE


@pytest.mark.parametrize(("name", "config"), [("bank_128_32k", MEL_32K), ("bank_128_16k", MEL_16K)])
def test_mel_bank(name: str, config: object) -> None:
    ours = mel_bank(config)  # type: ignore[arg-type]
    assert golden.relative_error(ours, golden.arrays("mel")[name]) <= TOLERANCE


@pytest.mark.parametrize("file", SEEDED)
def test_seeded_weights(file: str) -> None:
    spec, architecture = SEEDED[file]
    model = AudioEmbedder(file, spec)
    model.backbone.load_state_dict(golden.seeded_state(architecture), strict=True)
    _assert_reproduces(model, f"{file}_seeded")


def test_published_weights() -> None:
    model = AudioEmbedder.load("mn04_as", weights=WEIGHTS, device="cpu")
    _assert_reproduces(model, "mn04_as_real")


def _assert_reproduces(model: AudioEmbedder, file: str) -> None:
    expected = golden.arrays(file)
    ours = _clip_outputs(model) | _other_outputs(model, expected)
    errors = {
        key: golden.relative_error(ours[key], array)
        for key, array in expected.items()
        if key != "long/samples"
    }
    assert {key: error for key, error in errors.items() if not error <= TOLERANCE} == {}


def _clip_outputs(model: AudioEmbedder) -> dict[str, torch.Tensor]:
    outputs = {}
    for name in golden.CLIPS:
        wave = golden.clip(name)
        features = {tap: vector[0] for tap, vector in model.features(wave).items()}
        for tap, vector in features.items():
            outputs[f"{name}/{_golden_name(tap)}"] = vector
        outputs[f"{name}/embedding"] = features["clf1"]
        outputs[f"{name}/scene"] = model.scene(wave)[0]
    return outputs


def _golden_name(tap: str) -> str:
    if tap == "mel":
        return "mel_mean"
    for short, long in (("se", "se_"), ("b", "block_")):
        if tap.removeprefix(short).isdigit():
            return f"{long}{tap.removeprefix(short)}"
    return tap


def _other_outputs(model: AudioEmbedder, names: Container[str]) -> dict[str, torch.Tensor]:
    music, metro, dog = (golden.clip(name) for name in golden.CLIPS)
    scenes = {
        "long/scene": torch.cat([music, metro, dog])[None],
        "tiny_50ms/scene": dog[None, :1_600],
        "batch_2s/scene": torch.stack([clip[:64_000] for clip in (music, metro, dog)]),
        "silence_1s/scene": torch.zeros(1, 32_000),
    }
    outputs = {key: model.scene(wave).squeeze(0) for key, wave in scenes.items() if key in names}
    for name, samples in (("dog_2s", 64_000), ("quarter_s", 8_000)):
        if f"{name}/timestamps_ms" in names:
            vectors, ms = model.timestamps(dog[:samples])
            outputs[f"{name}/timestamp_embeddings"] = vectors[0]
            outputs[f"{name}/timestamps_ms"] = ms[0]
    return outputs
