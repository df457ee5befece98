"""Exported models: what onnxruntime computes without torch is what the model computes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder import export as module
from embedder.audio.decode import load_audio
from embedder.cli import main
from embedder.errors import BadRequest
from embedder.export import TOLERANCE, ExportFailed, export, minimum_samples
from embedder.model import AudioEmbedder
from embedder.testing import write_wav
from embedder.zoo import (
    MEL_16K,
    MEL_32K,
    DyMNConfig,
    FrameMNConfig,
    MNConfig,
    ModelSpec,
    NetworkConfig,
)
from tests.cli_kit import noise
from tests.shared import ROOT, SHARED, needs_shared
from tests.threads import one_thread

NETWORKS: dict[str, NetworkConfig] = {
    "mn": MNConfig(0.1),
    "dymn": DyMNConfig(0.1),
    "fmn": FrameMNConfig(0.1, "tf", 32),
    "fmn+gru": FrameMNConfig(0.1, "gru", 32),
}


def build(name: str) -> AudioEmbedder:
    torch.manual_seed(0)
    network = NETWORKS[name]
    mel = MEL_16K if isinstance(network, FrameMNConfig) else MEL_32K
    model = AudioEmbedder(name, ModelSpec(network, mel, ""))
    model.use("torch")
    return model


def run(path: Path, given: Tensor) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # some of what is asked here is refused
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {session.get_inputs()[0].name: given.numpy()})
    return dict(zip(names, values, strict=True))


def facts_of(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return facts


def assert_close(actual: NDArray[Any], expected: Tensor) -> None:
    assert actual.shape == tuple(expected.shape)
    assert abs(actual - expected.numpy()).max() <= TOLERANCE * expected.abs().max()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def mn() -> AudioEmbedder:
    return build("mn")


@pytest.fixture(scope="module")
def mn_file(mn: AudioEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(mn, path, with_frontend=True)
    return path


@pytest.fixture(scope="module", params=NETWORKS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AudioEmbedder, Path]:
    model = build(request.param)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert export(model, path, with_frontend=True).error < TOLERANCE / 4
    return model, path


@pytest.mark.parametrize(("clips", "seconds"), [(1, 10.0), (1, 0.3), (4, 0.777)])
def test_files_compute_what_the_model_does(
    exported: tuple[AudioEmbedder, Path], clips: int, seconds: float
) -> None:
    model, path = exported
    wave = torch.randn(clips, round(seconds * model.sample_rate)) * 0.1
    outputs = run(path, wave)
    assert_close(outputs["embedding"], model.scene(wave))
    assert_close(outputs["probabilities"], model.tags(wave))
    assert_close(outputs["logits"], model.features(wave, taps=["logits"])["logits"])
    if not model.name.startswith("fmn"):
        assert "frame_probabilities" not in outputs
    elif seconds == 10.0:  # a whole chunk of the detector's
        assert_close(outputs["frame_probabilities"], model.frame_probabilities(wave).values)
        assert facts_of(path)["frame_ms"] == "40"


def test_timestamps_are_windows_of_the_mirrored_clip(mn: AudioEmbedder, mn_file: Path) -> None:
    for samples in (2_000, 20_011):
        clip = torch.randn(samples) * 0.1
        padded = np.pad(clip.numpy(), 2560, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 5120)[::1600]
        vectors = run(mn_file, torch.from_numpy(windows.copy()))["embedding"]
        assert_close(vectors, mn.timestamps(clip).vectors[0])


def test_log_mels_are_taken_from_one_frame_on(mn: AudioEmbedder, tmp_path: Path) -> None:
    path = tmp_path / "mel.onnx"
    done = export(mn, path)
    assert (done.path, done.size) == (path, path.stat().st_size)
    for frames in (1, 77):
        mel = torch.randn(3, 128, frames)
        assert_close(run(path, mel)["logits"], mn.backbone(mel))
    assert facts_of(path)["minimum_samples"] == "1"


def test_the_shortest_waveform_is_as_told(mn: AudioEmbedder, mn_file: Path) -> None:
    shortest = int(facts_of(mn_file)["minimum_samples"])
    assert shortest == minimum_samples(mn.spec) == 514
    wave = torch.randn(1, shortest)
    assert_close(run(mn_file, wave)["embedding"], mn.scene(wave))
    with pytest.raises(Exception, match="Pad reflect"):
        run(mn_file, wave[:, 1:])


def test_files_say_what_they_are(mn: AudioEmbedder, mn_file: Path) -> None:
    facts = facts_of(mn_file)
    assert facts["name"] == "mn"
    assert facts["sample_rate"] == "32000"
    assert json.loads(facts["taps"]) == list(mn.taps)
    assert sum(json.loads(facts["tap_sizes"])) == mn.scene_embedding_size
    assert json.loads(facts["labels"]) == list(mn.labels)
    assert json.loads(facts["mel"])["n_fft"] == 1024
    assert facts["source"] == facts["licence"] == ""  # of random weights


def test_the_sources_of_weights(tmp_path: Path) -> None:
    ours = export(AudioEmbedder.load("sprout04", device="cpu"), tmp_path / "ours.onnx")
    facts = facts_of(ours.path)
    assert facts["source"].startswith("audio-embedder")
    assert facts["licence"] == "MIT"
    assert len(facts["weights_sha256"]) == 64


@pytest.mark.parametrize("rate", [32_000, 44_100])
def test_the_documented_example_needs_no_torch(mn: AudioEmbedder, mn_file: Path, rate: int) -> None:
    section = (ROOT / "docs" / "onnx.md").read_text("utf-8").partition("## Without torch")[2]
    [code] = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    folder = mn_file.parent
    street = write_wav(folder / "street.wav", noise(12.34), rate)
    blocked = "import sys\nsys.modules.update(torch=None, embedder=None, onnx=None)\n"
    command = [sys.executable, "-W", "error", "-c", blocked + code]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    wave = torch.from_numpy(load_audio(street, mn.sample_rate))
    assert_close(np.load(folder / "embedding.npy"), mn.scene(wave)[0])
    score, label = done.stdout.splitlines()[0].split("  ")
    tags = mn.tags(wave)[0]
    assert tags.max().item() == pytest.approx(float(score), abs=1e-3)
    assert label in mn.labels


def test_a_file_that_computes_something_else_is_not_kept(
    mn: AudioEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("what was here")
    monkeypatch.setattr(module, "PREEMPHASIS", 0.96)
    with pytest.raises(ExportFailed, match=r"differ from torch's by .* nothing was written"):
        export(mn, path, with_frontend=True)
    assert path.read_text() == "what was here"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_exported_says_so(
    mn: AudioEmbedder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadRequest, match="no folder"):
        export(mn, tmp_path / "nowhere" / "model.onnx")
    network = FrameMNConfig(0.1, "mamba", 32)
    mamba = AudioEmbedder("mine", ModelSpec(network, MEL_16K, ""))
    with pytest.raises(BadRequest, match="mine has no ONNX form"):
        export(mamba, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_front_ends_of_other_resolutions(tmp_path: Path) -> None:
    mel = replace(MEL_32K, n_mels=40, hop=160, window=801, n_fft=1200)
    model = AudioEmbedder("mine", ModelSpec(MNConfig(0.1), mel, ""), ("mel",))
    assert export(model, tmp_path / "model.onnx", with_frontend=True).error < TOLERANCE


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMBEDDER_WEIGHTS", raising=False)
    monkeypatch.setenv("EMBEDDER_THREADS", "1")
    path = tmp_path / "model.onnx"
    command = ["export", "sprout04", "-o", str(path), "--with-frontend", "--taps", "b5,clf2"]
    assert main(command) == 0
    assert re.search(r"model.onnx: \d+\.\d MB, within \de-\d+ of torch", capsys.readouterr().out)
    assert json.loads(facts_of(path)["taps"]) == ["b5", "clf2"]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main([*command, "--overwrite"]) == 2
    assert "pip install -e '.[onnx]'" in capsys.readouterr().err


@pytest.mark.slow
@needs_shared
def test_a_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_WEIGHTS_DIR", str(SHARED / "weights"))
    model = AudioEmbedder.load("mn04_as", device="cpu")
    done = export(model, tmp_path / "mn04.onnx", with_frontend=True)
    assert done.error < TOLERANCE
    assert facts_of(done.path)["source"].startswith("https://github.com/fschmid56/")
