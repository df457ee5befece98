"""What OpenVINO compiles: which graphs, on which kernels, and what they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from embedder.runtime import openvino_engine
from tests.engine_kit import NETWORKS, model_of, run_with
from tests.shared import ROOT
from tests.tensors import distance, waves


@pytest.mark.parametrize("samples", [320_000, 319_000])  # a fixed shape, and any
def test_means_of_large_maps_are_exact(samples: int) -> None:
    model = model_of(NETWORKS["mn"])
    wave = waves(1, samples)
    ours = run_with(model, "openvino").features(wave, taps=["b0", "b1", "b2"])
    for tap, exact in model.features(wave, taps=["b0", "b1", "b2"]).items():
        assert distance(ours[tap], exact) < 1e-5, tap


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="kernels for AVX-512 are asked for"
)
@pytest.mark.parametrize("name", ["mn", "fmn"])
def test_single_clips_run_on_the_kernels_asked_for(
    name: str, compiled: list[tuple[dict[str, str], Any]]
) -> None:
    model = run_with(model_of(NETWORKS[name]), "openvino")
    model.scene(waves(1, 10 * model.sample_rate))
    ((_, network),) = compiled
    notes = [layer.get_rt_info() for layer in network.get_runtime_model().get_ops()]
    kernels = [n["primitiveType"].value for n in notes if n["layerType"].value == "Convolution"]
    assert len(kernels) > 45
    assert all(kernel.startswith("jit_avx512") for kernel in kernels), set(kernels)


def test_selections_beyond_the_first_share_a_network(
    compiled: list[tuple[dict[str, str], Any]],
) -> None:
    model = run_with(model_of(NETWORKS["mn"]), "openvino")
    wave = waves(1, 8_000)
    exact = model_of(NETWORKS["mn"]).features(wave)
    for number in range(1, 12):
        taps = [f"b{number}", "mel", f"b{number + 2}"]
        for tap, vector in model.features(wave, taps=taps).items():
            assert distance(vector, exact[tap]) < 1e-5
    assert len(compiled) == 2
    bounds = {options["CPU_RUNTIME_CACHE_CAPACITY"] for options, _ in compiled}
    assert bounds == {str(openvino_engine.SHAPE_ENTRIES)}


def test_a_part_of_a_selection_needs_no_network(compiled: list[tuple[dict[str, str], Any]]) -> None:
    model = run_with(model_of(NETWORKS["mn"]), "openvino")
    wave = waves(1, 8_000)
    both = model.features(wave, taps=["mel", "b3", "logits"])
    for taps in (["logits"], ["b3", "mel"]):
        for tap, vector in model.features(wave, taps=taps).items():
            assert torch.equal(vector, both[tap])
    assert len(compiled) == 1


def test_graphs_that_gave_back_their_memory_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "WARM", 1)
    model = run_with(model_of(NETWORKS["mn"]), "openvino")
    sounds = [waves(1, 8_000), waves(3, 320_000), waves(1, 320_000)]
    first = [model.scene(wave) for wave in sounds]
    engine = model._engine.engine()
    assert isinstance(engine, openvino_engine.OpenVINOEngine)
    assert len(engine._requests) > len(engine._warm) == 1
    for wave, vectors in zip(sounds, first, strict=True):
        assert torch.equal(model.scene(wave), vectors)


def test_nothing_is_reported_and_nothing_is_written_into_the_home(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import embedder.runtime.openvino_engine"]
    root = str(ROOT)
    subprocess.run(
        command, env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": root}, check=True
    )
    assert list(tmp_path.iterdir()) == []
