"""Inspections of a DyMN disturb one part of it, and leave no trace."""

from __future__ import annotations

import pytest
import torch

from embedder.errors import BadRequest
from eval.dymn_inspections import INSPECTIONS, inspect_all, inspected, plot_relu, relu_points
from tests.dymn_kit import small, spectrograms
from tests.tensors import distance


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
