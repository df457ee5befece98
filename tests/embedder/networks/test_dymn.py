"""DyMN: the golden outputs, every form of dynamic convolution, ablations, and inspections."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from embedder.errors import BadRequest
from embedder.frontend import LogMel
from embedder.networks.blocks import BlockConfig
from embedder.networks.context import Affine, affine, context_size
from embedder.networks.dymn import DyMN, DynamicBlock, TemperatureSchedule, dynamic_positions
from embedder.networks.dynamic import (
    DynamicDepthwise,
    DynamicPointwise,
    DynamicReLU,
    Form,
    KernelAttention,
)
from embedder.zoo import MEL_32K, DyMNConfig
from eval.dymn_inspections import INSPECTIONS, inspect_all, inspected, plot_relu, relu_points
from tests import golden
from tests.shared import needs_shared
from tests.tensors import distance, noise
from tests.threads import one_thread

TOLERANCE = 5e-4
SMALL = DyMNConfig(0.1)

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


def small(**changes: object) -> DyMN:
    """A little DyMN whose random contexts matter."""
    torch.manual_seed(0)
    network = DyMN(replace(SMALL, **changes)).eval()  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        if "residuals" in name or "coef_net" in name or "context_gen.conv" in name:
            nn.init.normal_(parameter, 0, 0.5)
    return network.requires_grad_(False)


def spectrograms(*shape: int) -> Tensor:
    """Clips [B, M, F] that differ in level and in colour, so that their contexts do."""
    levels, slopes = noise(shape[0], 2)[:, :, None, None].unbind(1)
    return noise(*shape) + levels + slopes * torch.linspace(-2, 2, shape[1])[:, None]


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
    assert int(network.layers[0].proj_norm.num_batches_tracked) == 1


def test_a_frozen_network_passes_gradients_on() -> None:
    network = small().requires_grad_(True)
    network(spectrograms(2, 128, 300)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@torch.no_grad()
def test_dynamic_convolutions_are_mixtures_of_kernels() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(24).eval()
    norm.running_mean, norm.running_var = torch.rand(24), torch.rand(24) + 0.5
    vector, x = noise(3, 8), noise(3, 24, 9, 11)
    block = BlockConfig(5, 24, 24, 24, False, "relu", (2, 2))
    depthwise = DynamicDepthwise(SMALL, 8, block)
    pointwise = DynamicPointwise(SMALL, 8, (24, 24))
    for conv, groups, stride, padding in ((depthwise, 24, 2, 2), (pointwise, 1, 1, 0)):
        shares = conv.attend(vector)
        kernels = conv.weight.view(4, *conv.shape)
        expected = torch.cat(
            [
                nn.functional.conv2d(
                    clip[None],
                    torch.einsum("k,koixy->oixy", share, kernels),
                    stride=stride,
                    padding=padding,
                    groups=groups,
                )
                for clip, share in zip(x, shares, strict=True)
            ]
        )
        for form in Form if conv is pointwise else (Form.CLIPS, Form.MAPS):
            dynamics = conv.dynamics(vector, form)
            assert distance(conv(x, dynamics, form), expected) <= 1e-6
        conv.fold(norm)
        dynamics = conv.dynamics(vector, Form.CLIPS)
        assert distance(conv(x, dynamics, Form.CLIPS), norm(expected)) <= 1e-6


def test_affine_is_what_batch_norm_does() -> None:
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean, norm.running_var = noise(4), noise(4).abs() + 0.1
    x = noise(2, 4, 3, 3)
    scale, shift = (part[:, None, None] for part in affine(norm))
    assert isinstance(affine(norm), Affine)
    assert torch.allclose(x * scale + shift, norm(x), atol=1e-6)


@pytest.mark.parametrize("mappings", [1, 2, 3])
def test_dynamic_relu_is_the_greatest_of_m_lines(mappings: int) -> None:
    torch.manual_seed(0)
    relu = DynamicReLU(6, 8, replace(SMALL, mappings=mappings))
    vector, x = noise(2, 8), noise(2, 6, 4, 5)
    theta = 2 * relu.coef_net(vector).sigmoid() - 1
    a, b = theta.view(2, 6, 2, mappings).unbind(2)
    a = a + torch.tensor([1.0] + [0.0] * (mappings - 1))
    lines = x[..., None] * a[:, :, None, None] + 0.5 * b[:, :, None, None]
    assert torch.allclose(relu(x, relu.dynamics(vector)), lines.amax(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("width", "expanded", "changes", "size"),
    [
        (1.0, 16, {}, 32),  # H_min
        (1.0, 240, {}, 64),
        (1.0, 960, {}, 128),  # H_max
        (0.4, 384, {}, 48),
        (2.0, 1920, {}, 256),
        (1.0, 480, {"reduction": 8}, 64),
        (1.0, 16, {"min_context": 64}, 64),
        (1.0, 960, {"max_context": 256}, 240),
    ],
)
def test_context_sizes(width: float, expanded: int, changes: dict[str, int], size: int) -> None:
    assert context_size(DyMNConfig(width, **changes), expanded) == size  # type: ignore[arg-type]


def test_places_of_dynamic_blocks() -> None:
    places = {
        placement: "".join("d" if dynamic else "-" for dynamic in dynamic_positions(config))
        for placement in ("all", "replace_se", "first", "middle", "last")
        for config in [DyMNConfig(placement=placement)]  # type: ignore[arg-type]
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


def test_temperature_evens_the_attention_out() -> None:
    network = small(temperature=30.0)
    assert network.temperature == 30.0
    attention = next(part for part in network.modules() if isinstance(part, KernelAttention))
    logits = torch.tensor([[4.0, 0.0, 0.0, 0.0]])
    assert attention(logits).max() < 0.3
    network.temperature = 1.0
    assert attention(logits).max() > 0.9
    assert small(dynamic_conv=False).temperature is None


def test_temperature_schedule() -> None:
    schedule = TemperatureSchedule()
    epochs = (0, 15, 30, 200)
    assert [schedule.at(epoch) for epoch in epochs] == [30.0, 15.5, 1.0, 1.0]
    assert [TemperatureSchedule(10.0, 10.0).at(epoch) for epoch in epochs] == [10.0] * 4


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


@pytest.mark.parametrize("name", INSPECTIONS)
def test_inspections_disturb_and_leave_no_trace(name: str) -> None:
    network, mel = small(), spectrograms(3, 128, 400)
    before = network(mel)
    with inspected(network, name, seed=1):
        during = network(mel)
        assert distance(during, before) > 1e-6
    with inspected(network, name, seed=1):
        assert torch.equal(network(mel), during)
    assert torch.equal(network(mel), before)


def test_context_shuffles_use_the_other_clip() -> None:
    network, mel = small(), spectrograms(2, 128, 40)
    twins = mel[:1].expand(2, -1, -1)
    for name in ("ca/context", "conv/context", "relu/context"):
        with inspected(network, name):
            assert distance(network(twins)[:1], small()(mel[:1])) <= 1e-5
            with pytest.raises(BadRequest, match="two clips"):
                network(mel[:1])


def test_uniform_attention_is_the_mean_kernel() -> None:
    network, mel = small(), spectrograms(2, 128, 40)
    with inspected(network, "conv/uniform"):
        uniform = network(mel)
    network.temperature = 1e9
    assert distance(uniform, network(mel)) <= 1e-5


def test_the_inspection_table() -> None:
    mel = spectrograms(2, 128, 40)
    table = inspect_all(small(), mel, lambda logits: float(logits.mean()))
    assert list(table) == ["reference", *INSPECTIONS]
    static = inspect_all(small(dynamic_conv=False), mel, lambda logits: float(logits.mean()))
    assert not any(name.startswith("conv/") for name in static)


def test_unknown_inspections_are_refused() -> None:
    with pytest.raises(BadRequest, match="choose one of"), inspected(small(), "ca/none"):
        pass
    network = small(dynamic_conv=False)
    with pytest.raises(BadRequest, match="nothing"), inspected(network, "conv/max"):
        pass


def test_relu_points_lie_on_dynamic_relus() -> None:
    points = relu_points(small(), spectrograms(4, 128, 64), points=400)
    assert list(points) == list(range(1, 16))
    assert all(pairs.shape == (2, 400) for pairs in points.values())


def test_relu_points_plot() -> None:
    pytest.importorskip("matplotlib")
    figure = plot_relu(relu_points(small(), spectrograms(2, 128, 64), points=100))
    assert [axes.get_title() for axes in figure.axes] == [f"Block {n}" for n in (1, 3, 8, 13, 15)]
