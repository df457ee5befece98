"""Every engine gives the same numbers, and none outlives the weights that it was made of."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embedder import AudioEmbedder, load_audio, runtime, zoo
from embedder.errors import BadRequest
from embedder.runtime import choose, conversion, create, lazy, network_cache, openvino_engine
from embedder.runtime.base import Engine, EngineInput
from embedder.runtime.cuda_engine import halved
from embedder.zoo import MODELS, DyMNConfig, FrameMNConfig, MelConfig, ModelSpec, lookup
from eval.dymn_inspections import inspected
from tests.hear_kit import tiny_checkpoint
from tests.shared import ROOT, SHARED, needs_shared
from tests.tensors import distance, waves

CPU = torch.device("cpu")
TINY = "mn01_as"
NETWORKS = {
    "mn": lookup(TINY),
    "dymn": replace(lookup("dymn04_as"), network=DyMNConfig(0.1)),
    "fmn": replace(lookup("fmn04_strong"), network=FrameMNConfig(0.1)),
    "fmn+gru": replace(lookup("fmn04_strong"), network=FrameMNConfig(0.1, "gru", 32)),
}
SEQUENCES = sorted(
    {m.network.sequence for m in MODELS.values() if isinstance(m.network, FrameMNConfig)}
    - {None, "gru"}
)


@torch.no_grad()
def model_of(spec: ModelSpec) -> AudioEmbedder:
    """Random weights, with BatchNorms that do something."""
    torch.manual_seed(0)
    model = AudioEmbedder("tiny", spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    return model


def run_with(model: AudioEmbedder, choice: str) -> AudioEmbedder:
    """A copy that runs on another engine."""
    other = copy.deepcopy(model)
    other.use(choice)
    return other


@pytest.mark.parametrize("choice", ["torch", "openvino"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_engines_agree(kind: str, choice: str) -> None:
    check_agreement(model_of(NETWORKS[kind]), choice)


@pytest.mark.slow
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_engines_agree_on_every_sequence_model(sequence: str) -> None:
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


@pytest.mark.parametrize("samples", [320_000, 319_000])  # a fixed shape, and any
def test_means_of_large_maps_are_exact(samples: int) -> None:
    model = model_of(NETWORKS["mn"])
    wave = waves(1, samples)
    ours = run_with(model, "openvino").features(wave, taps=["b0", "b1", "b2"])
    for tap, exact in model.features(wave, taps=["b0", "b1", "b2"]).items():
        assert distance(ours[tap], exact) < 1e-5, tap


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


@pytest.mark.parametrize("choice", ["eager", "torch", "openvino"])
def test_new_weights_show_at_once(choice: str) -> None:
    model = run_with(model_of(NETWORKS["mn"]), choice)
    wave = waves(1, 16_000)
    before = model.scene(wave)
    other = AudioEmbedder("other", model.spec)
    model.backbone.load_state_dict(other.backbone.state_dict())
    assert distance(model.scene(wave), before) > 0.01
    assert distance(model.scene(wave), other.scene(wave)) < 1e-5


def test_weights_loaded_in_inference_mode_do_too(tmp_path: Path) -> None:
    path = tiny_checkpoint(TINY, tmp_path)
    with torch.inference_mode():
        model = AudioEmbedder.load(str(path), device="cpu")
        assert model.scene(waves(1, 1000)).shape == (1, model.scene_embedding_size)


def test_inspections_show_whatever_runs_the_network() -> None:
    model = run_with(model_of(NETWORKS["dymn"]), "torch")
    wave = waves(2, 16_000)
    before = model.scene(wave)
    with inspected(model, "conv/uniform"):
        assert distance(model.scene(wave), before) > 1e-4
    assert model.runtime == "torch"
    assert torch.equal(model.scene(wave), before)


def test_threads_share_an_engine() -> None:
    model = run_with(model_of(NETWORKS["mn"]), "openvino")
    clips = [waves(1, 8_000 + index) for index in range(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model.scene, clips))
    for ours, wave in zip(together, clips, strict=True):
        assert distance(ours, model.scene(wave)) < 1e-6


def test_threads_that_come_first_share_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def slow(choice: str, network: EngineInput) -> Engine:
        made.append(choice)
        time.sleep(0.05)
        return create(choice, network)

    monkeypatch.setattr(lazy, "create", slow)
    model = run_with(model_of(NETWORKS["mn"]), "torch")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(model.scene, [waves(1, 8_000)] * 4))
    assert made == ["torch"]


def test_networks_are_converted_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    most = under_way = 0

    def counted(network: EngineInput, graph: conversion.GraphShape) -> object:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.05)
        model = converted(network, graph)
        under_way -= 1
        return model

    converted = conversion._converted
    monkeypatch.setattr(conversion, "_converted", counted)
    models = [run_with(model_of(NETWORKS["mn"]), "openvino") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda model: model.scene(waves(1, 8_000)), models)
    assert all(torch.equal(first, other) for other in others)
    assert most == 1


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, str], Any]]:
    """The options and the network of all that OpenVINO compiles."""
    found: list[tuple[dict[str, str], Any]] = []
    compile_model = openvino_engine.openvino.Core.compile_model

    def noted(core: Any, model: Any, device: str, options: dict[str, str]) -> Any:
        network = compile_model(core, model, device, options)
        found.append((options, network))
        return network

    monkeypatch.setattr(openvino_engine.openvino.Core, "compile_model", noted)
    return found


@pytest.mark.parametrize(
    ("copies", "expected"),
    [(4, [("1", "2"), ("1", "2"), ("1", "4")]), (1, [("2", "4"), ("1", "4")])],
)
def test_clips_run_side_by_side(
    copies: int,
    expected: list[tuple[str, str]],
    compiled: list[tuple[dict[str, str], Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_engine, "MAX_COPIES", copies)
    monkeypatch.setattr(openvino_engine, "threads", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    model = run_with(model_of(NETWORKS["mn"]), "openvino")
    wave = waves(3, 10 * model.sample_rate)
    together = model.scene(wave)
    alone = torch.cat([model.scene(clip[None]) for clip in wave])
    assert distance(together, alone) < 1e-6
    asked = [(found["NUM_STREAMS"], found["INFERENCE_NUM_THREADS"]) for found, _ in compiled]
    assert asked == expected


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


def test_first_runs_of_several_threads_do_not_block_each_other() -> None:
    """Without the look-up in the engine's module, five of six such processes never end."""
    found = subprocess.run(
        [sys.executable, "-c", FIRST_RUNS], capture_output=True, text=True, timeout=120
    )
    assert found.stdout == "done\n", found.stderr


def test_threads_side_by_side_have_one_thread_of_torch_each() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with openvino_engine.single_threaded(2) as pool:

            def after_work(size: int) -> int:
                torch.fft.rfft(torch.zeros(size, 1024))  # large enough to be shared out
                return torch.get_num_threads()

            assert list(pool.map(after_work, [1000] * 4)) == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


FIRST_RUNS = """
import sys, threading
import embedder.runtime.openvino_engine as engine
sys.setswitchinterval(1e-6)
start = threading.Barrier(16)

def run():
    start.wait()
    engine.openvino.Type.f32.to_dtype()

threads = [threading.Thread(target=run) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


class TestKeptNetworks:
    """Converted networks stay on disk, under what their weights are."""

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = tmp_path / "cache"
        monkeypatch.setattr(openvino_engine, "cache_dir", lambda: self.cache)
        self.path = str(tiny_checkpoint(TINY, tmp_path))
        self.wave = waves(1, 8_000)

    def embed(self) -> Tensor:
        return AudioEmbedder.load(self.path, device="cpu", runtime="openvino").scene(self.wave)

    def test_a_second_process_need_not_convert(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.embed()
        monkeypatch.setattr(openvino_engine, "convert", None)
        assert torch.equal(self.embed(), first)

    def test_a_damaged_file_is_made_anew(self, caplog: pytest.LogCaptureFixture) -> None:
        first = self.embed()
        (kept,) = self.cache.rglob("*.xml")
        kept.write_text("<net>")
        assert torch.equal(self.embed(), first)
        assert "is damaged" in caplog.text
        assert kept.stat().st_size > 1000

    def test_a_cache_that_cannot_be_written_is_only_said(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.cache.write_text("no folder")
        assert self.embed().shape[0] == 1
        assert "could not be kept" in caplog.text

    def test_changed_weights_are_not_those_of_the_file(self) -> None:
        model = AudioEmbedder.load(self.path, device="cpu", runtime="openvino")
        with torch.no_grad():
            model.backbone.features[0][0].weight.mul_(-1)
        changed = model.scene(self.wave)
        assert not self.cache.exists()
        assert distance(changed, self.embed()) > 0.001

    def test_random_weights_are_not_kept(self) -> None:
        run_with(model_of(NETWORKS["mn"]), "openvino").scene(self.wave)
        assert not self.cache.exists()

    def test_a_flipped_bit_is_noticed(self, caplog: pytest.LogCaptureFixture) -> None:
        first = self.embed()
        (weights,) = self.cache.rglob("*.bin")
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
        assert torch.equal(self.embed(), first)
        assert "is damaged" in caplog.text
        caplog.clear()
        assert torch.equal(self.embed(), first)
        assert not caplog.text

    def test_one_file_serves_two_front_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = {"wide": lookup(TINY), "narrow": replace(lookup(TINY), mel=MelConfig(n_mels=64))}
        monkeypatch.setattr(zoo, "MODELS", rows)
        weights = self.cache.parent / "plain.pt"
        torch.save(model_of(NETWORKS["mn"]).backbone.state_dict(), weights)
        for name in rows:
            fast, slow = (
                AudioEmbedder.load(name, weights, device="cpu", runtime=choice)
                for choice in ("openvino", "eager")
            )
            assert distance(fast.scene(self.wave), slow.scene(self.wave)) < 1e-5

    def test_changed_statistics_are_not_those_of_the_file(self) -> None:
        untouched = self.embed()
        for change in (_move_statistics, _write_through_data, _add_hook):
            shutil.rmtree(self.cache)
            model = AudioEmbedder.load(self.path, device="cpu", runtime="openvino")
            change(model.backbone)
            changed = model.scene(self.wave)
            assert not self.cache.exists()
            assert distance(changed, self.embed()) > 1e-4
            assert torch.equal(self.embed(), untouched)

    def test_weights_that_change_while_graphs_are_made_are_not_kept(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = AudioEmbedder.load(self.path, device="cpu", runtime="openvino")
        convert = openvino_engine.convert

        def disturbed(network: EngineInput, graph: conversion.GraphShape) -> Any:
            _write_through_data(network.backbone)
            return convert(network, graph)

        monkeypatch.setattr(openvino_engine, "convert", disturbed)
        model.scene(self.wave)
        assert not self.cache.exists()

    def test_a_full_disk_is_only_said(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise RuntimeError("Check 'bin_file' failed: can't write")

        monkeypatch.setattr(network_cache.openvino, "save_model", full)
        model = AudioEmbedder.load(self.path, device="cpu", runtime="openvino")
        model.scene(self.wave)
        model.scene(waves(1, 10 * model.sample_rate))
        run_with(model_of(NETWORKS["mn"]), "openvino").scene(waves(1, 10 * model.sample_rate))
        assert caplog.text.count("could not be kept on disk") == 3
        assert not list((self.cache / "openvino").iterdir())

    def test_no_folder_for_temporary_files_is_only_said(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(self.cache / "nowhere"))
        model = run_with(model_of(NETWORKS["mn"]), "openvino")
        assert model.scene(waves(1, 10 * model.sample_rate)).isfinite().all()
        assert "could not be kept" in caplog.text

    def test_two_processes_keep_the_same_network_once(self) -> None:
        root = ROOT
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", EMBED, self.path]
        running = [subprocess.Popen(command, env=environment, stderr=-1) for _ in range(2)]
        assert [process.communicate(timeout=120)[1] for process in running] == [b"", b""]
        (folder,) = (self.cache / "embedder" / "openvino").iterdir()
        assert sorted(file.name for file in folder.iterdir()) == [
            "network.bin",
            "network.blake3",
            "network.xml",
        ]

    def test_what_was_used_longest_ago_goes_first(self, tmp_path: Path) -> None:
        for age, name in enumerate(("new", "old.bin", "older")):
            entry = tmp_path / "networks" / name
            file = entry if entry.suffix else entry / network_cache.WEIGHTS
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(100))
            os.utime(entry, (1e9 - age, 1e9 - age))
        network_cache.prune(tmp_path / "networks", 300)
        assert len(list((tmp_path / "networks").iterdir())) == 3
        network_cache.prune(tmp_path / "networks", 250)
        assert sorted(path.name for path in (tmp_path / "networks").iterdir()) == ["new", "old.bin"]
        network_cache.prune(tmp_path / "networks", 100)
        assert [path.name for path in (tmp_path / "networks").iterdir()] == ["new"]


EMBED = """
import sys, torch, embedder
torch.set_num_threads(1)
embedder.AudioEmbedder.load(sys.argv[1], device="cpu", runtime="openvino").scene(torch.ones(8000))
"""


@torch.no_grad()
def _move_statistics(backbone: Any) -> None:
    backbone.features[0][1].running_mean.add_(1)


def _write_through_data(backbone: Any) -> None:
    backbone.features[0][0].weight.data.mul_(-1)


def _replace_module(backbone: Any) -> None:
    last = backbone.classifier[-1]
    backbone.classifier[-1] = nn.Linear(last.in_features, last.out_features)


def _assign_weights(backbone: Any) -> None:
    state = {
        name: tensor * 0.9 if tensor.is_floating_point() else tensor
        for name, tensor in backbone.state_dict().items()
    }
    backbone.load_state_dict(state, assign=True)


def _add_hook(backbone: Any) -> None:
    backbone.features[0].register_forward_hook(lambda *call: call[-1] - 1)


@pytest.mark.parametrize("choice", ["torch", "openvino"])
@pytest.mark.parametrize("change", [_move_statistics, _replace_module, _assign_weights, _add_hook])
def test_whatever_changes_after_the_first_use_shows(
    change: Callable[[Any], None], choice: str
) -> None:
    model = run_with(model_of(NETWORKS["mn"]), choice)
    before = early_and_late(model)
    assert model._current.runtime() is model._current.runtime()
    change(model.backbone)
    after = early_and_late(model)
    assert distance(after, before) > 1e-4
    assert distance(after, early_and_late(run_with(model, "eager"))) < 1e-5


def early_and_late(model: AudioEmbedder) -> Tensor:
    return model.join(model.features(waves(1, 8_000), taps=["b1", "logits"]), ["b1", "logits"])


def test_writes_through_data_show_when_asked() -> None:
    model = run_with(model_of(NETWORKS["mn"]), "torch")
    before = model.scene(waves(1, 8_000))
    _write_through_data(model.backbone)
    model.use(model.runtime)
    assert distance(model.scene(waves(1, 8_000)), before) > 0.001


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
    engine = model._current.runtime()
    assert isinstance(engine, openvino_engine.OpenVINOEngine)
    assert len(engine._requests) > len(engine._warm) == 1
    for wave, vectors in zip(sounds, first, strict=True):
        assert torch.equal(model.scene(wave), vectors)


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


def test_nothing_is_reported_and_nothing_is_written_into_the_home(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import embedder.runtime.openvino_engine"]
    root = str(ROOT)
    subprocess.run(
        command, env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": root}, check=True
    )
    assert list(tmp_path.iterdir()) == []
