"""Dynamic convolutions, dynamic ReLUs and their contexts, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from embedder.networks.blocks import BlockConfig
from embedder.networks.context import Affine, affine, context_size
from embedder.networks.dymn import TemperatureSchedule
from embedder.networks.dynamic import (
    DynamicDepthwise,
    DynamicPointwise,
    DynamicReLU,
    Form,
    KernelAttention,
)
from embedder.zoo import DyMNConfig
from tests.dymn_kit import SMALL, small
from tests.tensors import distance, noise


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
