"""The Python surface: shapes, any length, determinism, alone or batched, clear errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedder import AudioEmbedder
from embedder.errors import BadAudio, BadRequest, UnknownModel, UnknownTap
from embedder.testing import tiny_model
from embedder.zoo import MODELS
from tests import tensors
from tests.tensors import distance

RATE = 32_000


@pytest.fixture(scope="module")
def model() -> AudioEmbedder:
    torch.manual_seed(0)
    return AudioEmbedder.build("mn01_as")


def noise(samples: int, clips: int = 1) -> Tensor:
    return tensors.noise(clips, samples) * 0.1


@pytest.mark.parametrize("name", [name for name in MODELS if "30" not in name and "40" not in name])
def test_every_architecture_gives_the_promised_sizes(name: str) -> None:
    model = AudioEmbedder.build(name)
    clip = noise(model.sample_rate // 2)
    assert model.scene(clip).shape == (1, model.scene_embedding_size)
    features = model.features(clip)
    assert {tap: f.shape[1] for tap, f in features.items()} == model.tap_sizes
    assert model.tags(clip).shape == (1, len(model.labels))


def test_mn10_embeds_into_the_600_values_of_the_paper() -> None:
    model = AudioEmbedder.build("mn10_as")
    assert model.scene_embedding_size == model.timestamp_embedding_size == 600
    sizes = model.tap_sizes
    assert sum(sizes[f"se{n}"] for n in (5, 11, 13, 15)) == 560  # M_SE, Table II
    assert (sizes["clf1"], sizes["clf2"], sizes["logits"]) == (960, 1280, 527)


def test_taps_come_in_the_callers_order(model: AudioEmbedder) -> None:
    chosen = AudioEmbedder("x", model.spec, taps=("b15", "mel", "se5", "logits"))
    chosen.backbone.load_state_dict(model.backbone.state_dict())
    clip = noise(RATE)
    features = model.features(clip)
    expected = torch.cat([features[tap] for tap in ("b15", "mel", "se5", "logits")], -1)
    assert torch.equal(chosen.scene(clip), expected)


@pytest.mark.parametrize("tap", ["b0", "b1", "b2", "b3", "b11", "b12", "b15", "se15"])
def test_a_tap_alone_is_as_among_all(model: AudioEmbedder, tap: str) -> None:
    """Alone, a block's mean is taken without making its map."""
    clip = noise(RATE, clips=2)
    alone, among = model.features(clip, taps=[tap])[tap], model.features(clip)[tap]
    assert distance(alone, among) <= 1e-6


@pytest.mark.parametrize("samples", [1, 2, 3, 100, 513, 1_600, 5_119, 5_120, RATE, 10 * RATE + 1])
def test_any_length_embeds(model: AudioEmbedder, samples: int) -> None:
    clip = noise(samples)
    scene = model.scene(clip)
    assert scene.isfinite().all()
    if samples <= RATE:
        vectors, ms = model.timestamps(clip)
        assert vectors.shape == (1, samples // 1_600 + 1, model.timestamp_embedding_size)
        assert vectors.isfinite().all()
        assert ms[0].tolist() == [50.0 * i for i in range(samples // 1_600 + 1)]
        assert ms.max() <= samples / RATE * 1000


def test_silence_embeds(model: AudioEmbedder) -> None:
    assert model.scene(torch.zeros(1, RATE)).isfinite().all()
    assert model.tags(torch.zeros(1, RATE)).isfinite().all()


@pytest.mark.parametrize("seconds", [1.0, 11.0])
def test_alone_and_batched_agree(model: AudioEmbedder, seconds: float) -> None:
    clips = noise(int(seconds * RATE), clips=5)
    batched = model.scene(clips)
    alone = torch.cat([model.scene(clip) for clip in clips])
    assert torch.linalg.norm(batched - alone) <= 1e-5 * torch.linalg.norm(alone)
    assert torch.equal(batched, model.scene(clips))


def test_long_clips_are_means_over_windows(model: AudioEmbedder) -> None:
    clip = noise(24 * RATE)
    tags = model.window_tags(clip)
    assert tags.ms[0].tolist() == [2_500.0 * i for i in range(10)]
    assert torch.allclose(model.tags(clip), tags.vectors.mean(1), atol=1e-6)
    short = model.window_tags(clip[:, : 4 * RATE])
    assert short.ms.tolist() == [[2_000.0]]
    assert torch.equal(short.vectors[:, 0], model.tags(clip[:, : 4 * RATE]))


def test_window_and_hop_are_the_callers(model: AudioEmbedder) -> None:
    clip = noise(RATE)
    vectors, ms = model.timestamps(clip, window_ms=100, hop_ms=33.3)
    assert vectors.shape[1] == math.floor(1000 / 33.3) + 1
    assert torch.allclose(ms[0].diff(), torch.tensor(33.3, dtype=torch.float64), atol=1e-9)
    halves = model.scene(clip, window_ms=500, hop_ms=500)
    assert not torch.allclose(halves, model.scene(clip))


@pytest.mark.parametrize("seconds", [0.02, 3.0, 10.5])
def test_streams_equal_whole_clips(model: AudioEmbedder, seconds: float) -> None:
    clip = noise(int(seconds * RATE))

    def blocks() -> Iterator[Tensor]:
        yield from torch.split(clip, 27_777, dim=1)

    assert torch.allclose(model.scene_stream(blocks()), model.scene(clip), atol=1e-5)
    assert torch.allclose(model.tags_stream(blocks()), model.tags(clip), atol=1e-5)
    parts = list(model.timestamps_stream(blocks()))
    whole = model.timestamps(clip)
    assert torch.allclose(torch.cat([p.vectors for p in parts], 1), whole.vectors, atol=1e-5)
    assert torch.equal(torch.cat([p.ms for p in parts], 1), whole.ms)


def test_numpy_and_single_clips_are_welcome(model: AudioEmbedder) -> None:
    clip = noise(RATE)
    array = clip[0].numpy().astype(np.float64)
    array.flags.writeable = False
    assert torch.allclose(model.scene(array), model.scene(clip), atol=1e-6)


@pytest.mark.parametrize(
    ("waveforms", "message"),
    [
        (torch.zeros(1, 0), "not empty"),
        (torch.zeros(2, 3, 4), "mono"),
        (torch.zeros(1, 100, dtype=torch.int16), "int16 / 32768"),
        (torch.tensor([[0.0, math.nan]]), "contain nan"),
        (torch.tensor([[0.0, math.inf]]), "contain inf"),
        (torch.tensor([[0.0, 1e30]]), "scale them to"),
    ],
)
def test_bad_waveforms_are_refused(model: AudioEmbedder, waveforms: Tensor, message: str) -> None:
    for method in (model.scene, model.timestamps, model.tags, model.features):
        with pytest.raises(BadAudio, match=message):
            method(waveforms)


def test_unknown_names_list_the_choices(model: AudioEmbedder) -> None:
    with pytest.raises(UnknownModel, match="no model 'banana'; choose one of sprout04, mn01_as"):
        AudioEmbedder.load("banana")
    with pytest.raises(UnknownTap, match="no tap 'b99'; choose from mel, b0, b1"):
        model.features(noise(RATE), taps=["b99"])
    with pytest.raises(BadRequest, match="no device 'tpux'"):
        AudioEmbedder.load("mn01_as", device="tpux")


def test_the_network_is_in_eval_mode_and_frozen(model: AudioEmbedder) -> None:
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("seconds", [0.0002, 1.0, 11.0])
def test_the_module_itself_gives_the_scene(model: AudioEmbedder, seconds: float) -> None:
    clips = noise(int(seconds * RATE), clips=2)
    assert distance(model(clips), model.scene(clips)) <= 1e-5
    assert torch.equal(model(clips[0]), model(clips[:1]))
    with pytest.raises(BadAudio, match="mono"):
        model(clips[None])


@pytest.mark.parametrize("name", ["mn01_as", "fmn04_strong"])
@pytest.mark.parametrize("seconds", [0.01, 0.3])
def test_gradients_reach_the_waveform(name: str, seconds: float) -> None:
    torch.manual_seed(0)
    model = AudioEmbedder.build(name)
    wave = noise(int(seconds * model.sample_rate)).requires_grad_()
    weights = torch.rand(model.scene_embedding_size)

    def loss(audio: Tensor) -> Tensor:
        total: Tensor = (model(audio) @ weights).sum()
        return total

    (gradient,) = torch.autograd.grad(loss(wave), wave)
    length = float(gradient.norm())
    assert math.isfinite(length)
    step = 1e-3 * gradient / length
    with torch.no_grad():
        slope = float(loss(wave + step) - loss(wave - step)) / 2e-3
    assert slope == pytest.approx(length, rel=0.05)


def test_gradients_reach_the_weights_that_require_them(model: AudioEmbedder) -> None:
    clips = noise(RATE // 2, clips=2)
    assert not model(clips).requires_grad
    trained = copy.deepcopy(model).requires_grad_()
    trained(clips).square().sum().backward()
    gradients: dict[str, Any] = {
        name: parameter.grad
        for name, parameter in trained.backbone.named_parameters()
        if name.startswith("features") and not name.startswith("features.16")
    }
    assert gradients
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
    assert gradients["features.0.0.weight"].norm() > 0
    assert not trained.scene(clips).requires_grad


def test_a_model_without_frame_wise_heads_is_refused_before_clips_are_decoded() -> None:
    with pytest.raises(BadRequest, match="mn01_as"):
        tiny_model().events([b"no sound"])
