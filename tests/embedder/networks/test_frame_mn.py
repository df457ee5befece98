"""Frame-wise MN: the golden outputs, shapes at any length, taps, and published names."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch.nn import functional

from embedder.frontend import LogMel
from embedder.networks.frame_mn import FrameMN, published_names
from embedder.zoo import MEL_16K, MODELS, FrameMNConfig, SequenceName
from tests import golden
from tests.shared import needs_shared
from tests.tensors import distance, noise

TOLERANCE, TOLERANCE_HALF = 5e-4, 5e-3
KINDS: tuple[SequenceName, ...] = ("tf", "attn", "gru", "tcn", "hybrid", "mamba")
CONSTANTS = (".freqs",)

# name in state_dicts.json -> architecture; golden files have "_" for "+"
GOLDEN = {
    "fmn04": FrameMNConfig(0.4),
    "fmn06": FrameMNConfig(0.6),
    "fmn10": FrameMNConfig(1.0),
    "fmn20": FrameMNConfig(2.0),
    "fmn04+tf-104": FrameMNConfig(0.4, "tf", 104),
    "fmn04+hybrid-128": FrameMNConfig(0.4, "hybrid", 128),
    "fmn10+attn-256": FrameMNConfig(1.0, "attn", 256),
    "fmn10+gru-256": FrameMNConfig(1.0, "gru", 256),
    "fmn10+hybrid-256": FrameMNConfig(1.0, "hybrid", 256),
    "fmn10+tcn-256": FrameMNConfig(1.0, "tcn", 256),
    "fmn10+tf-256": FrameMNConfig(1.0, "tf", 256),
}


def small(sequence: SequenceName | None = None) -> FrameMN:
    torch.manual_seed(0)
    return FrameMN(FrameMNConfig(0.1, sequence, 32)).eval().requires_grad_(False)


@needs_shared
@pytest.mark.parametrize("name", GOLDEN)
def test_reproduces_the_reference(name: str) -> None:
    network = FrameMN(GOLDEN[name]).eval()
    network.load_state_dict(golden.seeded_state(name), strict=True)
    expected = golden.arrays(f"{name.replace('+', '_')}_seeded")
    frontend = LogMel(MEL_16K)
    failed, compared = {}, set()
    for clip in golden.CLIPS:
        wave = golden.clip(clip, MEL_16K.sample_rate)[: 10 * MEL_16K.sample_rate]
        wave = functional.pad(wave, (0, 10 * MEL_16K.sample_rate - len(wave)))
        with torch.inference_mode():
            mel = frontend(wave[None])
            strong, weak = network.detect(mel)
            frames = network.frames(mel)
        ours = {"strong_logits": strong.mT, "weak_logits": weak, "frames_mean": frames.mean(1)}
        for key, array in ours.items():
            reference = expected[f"{clip}/{key}"]
            error = golden.relative_error(array[0], reference)
            limit = TOLERANCE_HALF if reference.dtype == "float16" else TOLERANCE
            compared.add(f"{clip}/{key}")
            if not error <= limit:
                failed[f"{clip}/{key}"] = error
    assert failed == {}
    assert compared == expected.keys()


@needs_shared
@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    spec = json.loads((golden.GOLDEN / "state_dicts.json").read_text())[name]
    published = {key: tuple(shape) for key, shape in spec["shapes"].items()}
    network = FrameMN(GOLDEN[name])
    ours = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    # Constants, and the TCN's second name for each of its convolutions, are in files alone.
    missing = {key for key in published if key not in ours}
    assert {key: published[key] for key in ours} == ours
    assert all(key.endswith(CONSTANTS) or ".conv" in key for key in missing)
    network.load_state_dict({key: torch.zeros(shape) for key, shape in published.items()})


@pytest.mark.parametrize("frames", [1, 4, 5, 17, 100, 1000, 1001])
def test_a_frame_for_every_40_ms(frames: int) -> None:
    network = small()
    strong, weak = network.detect(noise(2, 128, frames))
    assert strong.shape == (2, -(-frames // 4), 447)
    assert weak.shape == (2, 447)
    assert network.frames(noise(2, 128, frames)).shape == (2, -(-frames // 4), 96)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_features_by_name(kind: SequenceName | None) -> None:
    network, mel = small(kind), noise(3, 128, 70)
    features = network.features_by_name(mel, list(network.tap_sizes))
    sizes = {tap: (3, size) for tap, size in network.tap_sizes.items()}
    assert {tap: tuple(vector.shape) for tap, vector in features.items()} == sizes
    assert distance(features["b16"], features["frames"]) <= 1e-6
    assert distance(network(mel), features["logits"]) <= 1e-6
    for tap in ("b5", "se11", "frames", "seq"):  # alone as among the others
        assert distance(network.features_by_name(mel, [tap])[tap], features[tap]) <= 1e-6
    maps = network.feature_maps(mel)
    assert [tuple(x.shape[2:]) for x in (maps[0], maps[2], maps[-1])] == [
        (64, 35),
        (32, 18),
        (1, 18),
    ]


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_alone_and_batched_agree(kind: SequenceName | None) -> None:
    network, mel = small(kind), noise(4, 128, 250)
    batched = network.detect(mel)
    alone = [network.detect(clip[None]) for clip in mel]
    for ours, reference in zip(batched, zip(*alone, strict=True), strict=True):
        assert distance(ours, torch.cat(reference)) <= 1e-5


@pytest.mark.parametrize("kind", ["tf", "hybrid", "mamba"])
def test_a_traced_network_takes_other_sizes(kind: SequenceName) -> None:
    network = small(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and OpenVINO's way in
        traced = torch.jit.trace(network, noise(2, 128, 100), check_trace=False)  # type: ignore[no-untyped-call]
    for shape in ((1, 128, 17), (3, 128, 600)):
        mel = noise(*shape)
        assert distance(traced(mel), network(mel)) <= 1e-5


def test_legacy_names() -> None:
    old = ["net.model.features.0.0.weight", "net.fmn.features.0.1.bias", "model.model.features.1.x"]
    old += ["model.fmn.features.2.x", "seq_model.0.weight"]
    new = ["model.fmn.features.0.0.weight", "model.fmn.features.0.1.bias", "model.fmn.features.1.x"]
    new += ["model.fmn.features.2.x", "seq_model.0.weight"]
    state = {name: noise(1) for name in old}
    assert list(published_names(state)) == new


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: SequenceName) -> None:
    network = small(kind).train().requires_grad_(True)
    strong, weak = network.detect(noise(2, 128, 200))
    torch.autograd.backward(strong.square().mean() + weak.square().mean())
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_published_sizes() -> None:
    def millions(name: str) -> float:
        spec = MODELS[name]
        assert isinstance(spec.network, FrameMNConfig)
        return sum(p.numel() for p in FrameMN(spec.network).parameters()) / 1e6

    assert millions("fmn10+tf-256_strong") == pytest.approx(5.0, abs=0.25)
    alone, with_hybrid = millions("fmn10_strong"), millions("fmn10+hybrid-128_strong")
    assert with_hybrid < alone
