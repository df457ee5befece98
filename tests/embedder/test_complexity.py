"""Parameters, multiply-accumulates and memory: as published, and as the README prints them."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
import torch
from torch import nn

from embedder.cli import main
from embedder.complexity import PeakMemory, _counter, architectures, measure
from embedder.networks.attention import GatedAttention
from embedder.networks.sequence import BiGRU
from embedder.zoo import MODELS, FrameMNConfig
from tests.shared import ROOT

README = ROOT / "README.md"
# What the papers print: parameters in millions, multiply-accumulates of 10 s in billions.
PRINTED = {
    "mn01_as": ("0.12", "0.02"),
    "mn04_as": ("0.98", "0.11"),
    "mn05_as": ("1.43", "0.16"),
    "mn10_as": ("4.88", "0.54"),
    "mn20_as": ("17.91", "2.06"),
    "mn30_as": ("39.09", "4.55"),
    "mn40_as": ("68.43", "8.03"),
    "dymn04_as": ("1.97", "0.12"),
    "dymn10_as": ("10.57", "0.58"),
    "dymn20_as": ("40.02", "2.2"),
}


def agrees(measured: float, printed: str) -> bool:
    """Within 2 %, or as near as the printed digits can tell."""
    half_a_digit = float(Decimal((0, (5,), int(Decimal(printed).as_tuple().exponent) - 1)))
    stated = float(printed)
    return abs(measured - stated) <= max(0.02 * stated, half_a_digit)


@pytest.mark.parametrize("name", PRINTED)
def test_figures_are_the_published_ones(name: str) -> None:
    params, macs = PRINTED[name]
    cost = measure(MODELS[name])
    assert agrees(cost.params / 1e6, params), cost
    assert agrees(cost.macs / 1e9, macs), cost


@pytest.mark.parametrize("name", PRINTED)
def test_the_zoo_states_what_is_printed(name: str) -> None:
    spec = MODELS[name]
    assert spec.params == pytest.approx(float(PRINTED[name][0]), rel=0.005)
    assert spec.macs == pytest.approx(float(PRINTED[name][1]))


def test_small_sequence_models_cost_what_their_paper_says() -> None:
    names = ("fmn10_strong", "fmn10+tf-256_strong", "fmn10+hybrid-128_strong", "fmn20_strong")
    alone, transformer, hybrid, twice = (measure(MODELS[name]) for name in names)
    assert transformer.params / 1e6 == pytest.approx(5, rel=0.02)
    assert transformer.params / twice.params == pytest.approx(0.376, abs=0.0005)
    assert hybrid.params < alone.params


def test_every_architecture_is_there_once() -> None:
    names = architectures()
    assert {"mn04_as", "mn40_as", "mn10_as_hop_5", "dymn20_as", "fmn10_strong"} <= set(names)
    assert {"fmn30+gru-768_strong", "fmn10+hybrid-1024_strong"} <= set(names)
    shapes = [(MODELS[name].network, MODELS[name].mel) for name in names]
    assert len(set(shapes)) == len(shapes)
    assert not {"sprout04", "mn40_as_ext", "fmn10_weak", "mn10_im"} & set(names)
    for spec in MODELS.values():
        same = [MODELS[name] for name in names if MODELS[name].mel == spec.mel]
        assert any(
            (type(one.network), one.network.width) == (type(spec.network), spec.network.width)
            for one in same
        )


def test_a_counted_recurrence_and_attention() -> None:
    frames, width, dim = 50, 24, 16
    with torch.inference_mode(), _counter() as counter:
        BiGRU(width, dim).eval()(torch.randn(1, frames, width))
    layers = 2 * 3 * dim * ((width + dim) + (2 * dim + dim))
    assert counter.get_total_flops() == 2 * frames * layers
    with torch.inference_mode(), _counter() as counter:
        GatedAttention(dim).eval()(torch.randn(1, frames, dim))
    linear = frames * (dim * 3 * dim + dim * 4 + dim * dim)
    assert counter.get_total_flops() == 2 * (linear + 2 * frames * frames * dim)


def test_peak_memory_is_that_of_tensors_alive_at_once() -> None:
    layers = nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 20), nn.ReLU(True))
    x = torch.randn(1, 10)
    with torch.inference_mode(), PeakMemory(layers.parameters()) as memory:
        memory.see(x)
        layers(x)
    assert memory.peak == 4 * (10 + 1000 + 1000)
    with torch.inference_mode(), PeakMemory() as memory:
        pieces = [torch.zeros(100) for _ in range(3)]
        views = [piece.view(10, 10).T for piece in pieces]
        del pieces, views
        torch.zeros(50)
    assert memory.peak == 4 * 300


def test_the_command_measures_what_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--profile", "sprout04", "fmn04_strong", "--json"]) == 0
    sprout, frames = json.loads(capsys.readouterr().out)
    assert (sprout["name"], frames["name"]) == ("sprout04", "fmn04_strong")
    assert (sprout["measured_params"], sprout["params"]) == (0.984, 0.983)
    assert (sprout["measured_macs"], sprout["macs"]) == (0.111, 0.11)
    assert frames["macs"] is None
    assert frames["peak_mb"] == 7.7
    assert main(["models", "--profile", "mn99"]) == 2
    assert "no model 'mn99'" in capsys.readouterr().err


def printed_table() -> list[str]:
    """The README's block of `embedder models --profile`, title and rows."""
    text = README.read_text("utf-8")
    block = text.split("$ embedder models --profile", 1)[1].split("```", 1)[0]
    return block.splitlines()[1:]


def test_the_readme_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    title, *rows = printed_table()
    cheap = [row for row in rows if row.split()[0] in {"mn04_as", "mn10_as", "dymn04_as"}]
    assert len(cheap) == 3
    assert main(["models", "--profile", *(row.split()[0] for row in cheap)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown == [line.split() for line in (title, *cheap)]


@pytest.mark.slow
def test_the_readme_shows_all_that_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    title, *rows = printed_table()
    assert main(["models", "--profile"]) == 0
    printed = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert printed.pop("name") == title.split()
    assert {row.split()[0]: row.split() for row in rows}.items() <= printed.items()
    assert set(printed) == set(architectures())
    for name in printed:
        assert FrameMNConfig is not type(MODELS[name].network) or printed[name][2] == "-"
