"""DyMN: the golden outputs, names and shapes of the published files, variants and cost."""

from __future__ import annotations

import json
import time
import warnings

import pytest
import torch
from torch import Tensor, nn

from embedder.frontend import LogMel
from embedder.networks.dymn import DyMN, DynamicBlock, dynamic_positions
from embedder.networks.dynamic import (
    DynamicReLU,
)
from embedder.zoo import MEL_32K, DyMNConfig
from tests import golden
from tests.dymn_kit import small, spectrograms
from tests.shared import needs_shared
from tests.tensors import distance
from tests.threads import one_thread

TOLERANCE = 5e-4
# golden file and state dict -> architecture
GOLDEN = {
    "dymn04": DyMNConfig(0.4),
    "dymn10": DyMNConfig(1.0),
    "dymn20": DyMNConfig(2.0),
    "dymn04_temperature30": DyMNConfig(0.4, temperature=30.0),
    "dymn04_replace_se": DyMNConfig(0.4, placement="replace_se"),
    "dymn04_no_ca": DyMNConfig(0.4, coordinate_attention=False),
    "dymn04_no_dyrelu": DyMNConfig(0.4, dynamic_relu=False),
    "dymn04_no_dyconv": DyMNConfig(0.4, dynamic_conv=False),
}


@needs_shared
@pytest.mark.parametrize("name", GOLDEN)
def test_reproduces_the_reference(name: str) -> None:
    network = DyMN(GOLDEN[name]).eval()
    network.load_state_dict(golden.seeded_state(name), strict=True)
    frontend = LogMel(MEL_32K)
    errors = {}
    for clip in golden.CLIPS:
        with torch.inference_mode():
            mel = frontend(golden.clip(clip)[None])
            features = network.features_by_name(mel, list(network.tap_sizes))
        ours = {f"block_{n}": features[f"b{n}"] for n in range(17)}
        ours |= {"embedding": features["clf1"], "logits": features["logits"]}
        for key, vector in ours.items():
            expected = golden.arrays(f"{name}_seeded")[f"{clip}/{key}"]
            errors[f"{clip}/{key}"] = golden.relative_error(vector[0], expected)
    assert errors.keys() == golden.arrays(f"{name}_seeded").keys()
    assert {key: error for key, error in errors.items() if not error <= TOLERANCE} == {}


@needs_shared
@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    spec = json.loads((golden.GOLDEN / "state_dicts.json").read_text())[name]
    published = {key: tuple(shape) for key, shape in spec["shapes"].items()}
    constants = {key for key in published if key.endswith((".lambdas", ".init_v"))}
    network = DyMN(GOLDEN[name])
    state = network.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: shape for key, shape in published.items() if key not in constants
    }
    # Files hold the constants too, and load strictly.
    whole = state | {key: torch.zeros(published[key]) for key in constants}
    network.load_state_dict(whole, strict=True)
    for part in network.modules():
        if isinstance(part, DynamicReLU):
            assert part.lambdas.tolist() == [1.0, 1.0, 0.5, 0.5]
            assert part.init_v.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_wrong_name_does_not_load() -> None:
    network = small()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        network.load_state_dict(network.state_dict() | {"layers.0.depth_act.other": torch.ones(1)})


@pytest.mark.parametrize("frames", [5, 40, 400])
def test_both_forms_alone_or_batched_agree(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    network, mel = small(), spectrograms(8, 128, frames)
    batched = network(mel)
    alone = torch.cat([network(clip[None]) for clip in mel])
    assert distance(batched, alone) <= 1e-5
    for values in (0, 2**40):  # every clip by itself; all together
        monkeypatch.setattr(DynamicBlock, "one_by_one", values)
        assert distance(network(mel), batched) <= 1e-5


def test_in_training_the_norms_run_and_every_parameter_learns() -> None:
    network = small().train().requires_grad_(True)
    network(spectrograms(3, 128, 64)).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert network.get_buffer("layers.0.proj_norm.num_batches_tracked") == 1


def test_a_frozen_network_passes_gradients_on() -> None:
    network = small().requires_grad_(True)
    network(spectrograms(2, 128, 300)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_places_of_dynamic_blocks() -> None:
    places = {
        placement: "".join("d" if dynamic else "-" for dynamic in dynamic_positions(config))
        for placement in ("all", "replace_se", "first", "middle", "last")
        for config in [DyMNConfig(placement=placement)]
    }
    assert places == {
        "all": "ddddddddddddddd",
        "replace_se": "---ddd----ddddd",
        "first": "ddddd----------",
        "middle": "-----ddddd-----",
        "last": "----------ddddd",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"placement": "last"},
        {"kernels": 2},
        {"kernels": 6, "mappings": 3},
        {"reduction": 8, "min_context": 16, "max_context": 64},
        {"coordinate_attention": False, "dynamic_relu": False, "dynamic_conv": False},
        {"n_classes": 10},
    ],
)
def test_variants_give_the_promised_sizes(changes: dict[str, object]) -> None:
    network = small(**changes)
    features = network.features_by_name(spectrograms(2, 128, 33), list(network.tap_sizes))
    assert {tap: tuple(f.shape) for tap, f in features.items()} == {
        tap: (2, size) for tap, size in network.tap_sizes.items()
    }


def test_a_traced_network_takes_other_sizes() -> None:
    network = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and OpenVINO's way in
        traced = torch.jit.trace(network, spectrograms(2, 128, 100), check_trace=False)  # type: ignore[no-untyped-call]
    for shape in ((1, 128, 17), (3, 128, 250)):
        mel = spectrograms(*shape)
        assert distance(traced(mel), network(mel)) <= 1e-5


@pytest.mark.slow
def test_a_clip_costs_less_in_a_batch_of_eight() -> None:
    torch.manual_seed(0)
    network = DyMN(DyMNConfig(1.0)).eval()
    one, eight = spectrograms(1, 128, 1000), spectrograms(8, 128, 1000)
    with one_thread(), torch.inference_mode():
        assert _seconds(network, eight) / 8 < _seconds(network, one)


def _seconds(network: nn.Module, mel: Tensor) -> float:
    """CPU time of the quickest of some runs."""
    times = []
    for _ in range(8):
        begin = time.thread_time()
        network(mel)
        times.append(time.thread_time() - begin)
    return min(times)
