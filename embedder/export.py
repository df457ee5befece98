"""Exports a model to one ONNX file that onnxruntime runs alone, checked against torch first.

Axes: B clips, S samples, M mel bands, F mel frames, T output frames (40 ms), D values, N labels.

    [waveform B S ─ spectrum ─] mel B M F ─ backbone ─ embedding B D, logits B N, probabilities B N
                                                     └ fmn: frame_probabilities B T N
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.defaults import FRAME_MS
from embedder.errors import BadRequest
from embedder.extras import require
from embedder.files import atomic
from embedder.frontend import PREEMPHASIS, LogMel, normalise_
from embedder.model import AudioEmbedder
from embedder.networks import Backbone
from embedder.networks.frame_mn import STRONG, FrameMN
from embedder.runtime.base import features_of, outputs_of
from embedder.version import __version__
from embedder.zoo import MODELS, FrameMNConfig, ModelSpec

OPSET: Final = 17
TOLERANCE: Final = 1e-4  # relative, for every tap and output
LOGITS: Final = "logits"
# Weights whose source begins with one of these are under the MIT licence.
MIT_WEIGHTS: Final = ("audio-embedder", "https://github.com/fschmid56/EfficientAT/")
# The checked inputs: how many clips, and their seconds. The shortest clip is checked too.
CHECKED: Final = ((1, 10.0), (1, 1.237), (3, 0.16), (2, 2.5))


class ExportFailed(Exception):
    """The graph does not compute what the model does: a fault of this module, not the caller's."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The file that was written."""

    path: Path
    size: int  # bytes
    error: float  # the greatest relative difference from torch


class ExportedLogMel(nn.Module):
    """`LogMel` in operators of ONNX: its Fourier transform is a convolution.

    onnxruntime's own DFT is less exact, and tracing cannot export it. The convolution is at least
    as near to the exact spectrum as the FFT in float32. Bins without weight in any mel band are
    left out.
    """

    kernels: Tensor
    bank: Tensor

    def __init__(self, frontend: LogMel) -> None:
        super().__init__()
        self.config = cfg = frontend.config
        bank, window = frontend.bank.cpu(), frontend.window.cpu().double()
        bins = torch.nonzero(bank.sum(0))[:, 0]
        steps = bins[:, None] * torch.arange(cfg.n_fft) % cfg.n_fft  # integers, so exact
        angles = steps.double() * (2 * math.pi / cfg.n_fft)
        kernels = torch.cat([angles.cos(), angles.sin()]) * window
        # The window is centred in the FFT; beside it the kernels are zero.
        self.margin = (cfg.n_fft - cfg.window) // 2
        inside = kernels[:, None, self.margin : self.margin + cfg.window]
        self.register_buffer("kernels", inside.float().contiguous())
        self.register_buffer("bank", bank[:, bins].contiguous())

    def forward(self, wave: Tensor) -> Tensor:
        """[B, S] -> [B, M, F]; S is at least `minimum_samples`."""
        cfg = self.config
        wave = wave[:, 1:] - PREEMPHASIS * wave[:, :-1]  # B S -> B S-1
        pad = cfg.n_fft // 2
        wave = functional.pad(wave[:, None], (pad, pad), mode="reflect")
        after = cfg.n_fft - cfg.window - self.margin
        wave = wave[..., self.margin : wave.shape[-1] - after]
        real, imaginary = functional.conv1d(wave, self.kernels, stride=cfg.hop).chunk(2, 1)
        mel = self.bank @ (real.square() + imaginary.square())  # B K F -> B M F
        return normalise_(mel, cfg)


class Graph(nn.Module):
    """The module that is exported: waveforms or log-mels -> the outputs, in their order."""

    def __init__(self, model: AudioEmbedder, with_frontend: bool) -> None:
        super().__init__()
        self.frontend = ExportedLogMel(model.frontend) if with_frontend else nn.Identity()
        self.backbone = model.backbone
        self.taps = model.taps
        self.detects = isinstance(model.backbone, FrameMN)

    def forward(self, audio: Tensor) -> tuple[Tensor, ...]:
        """[B, S] or [B, M, F] -> embedding [B, D], logits and probabilities [B, N].

        A frame-wise network also gives the probabilities of frames [B, T, N].
        """
        features = _features(self.backbone, self.frontend(audio), self.taps, self.detects)
        embedding = torch.cat([features[tap] for tap in self.taps], -1)
        outputs = (embedding, features[LOGITS], features[LOGITS].sigmoid())
        return (*outputs, features[STRONG].sigmoid()) if self.detects else outputs


def minimum_samples(spec: ModelSpec) -> int:
    """The shortest waveform that an exported front end takes, which mirrors it by half an FFT."""
    return spec.mel.n_fft // 2 + 2


def export(model: AudioEmbedder, path: Path, *, with_frontend: bool = False) -> Exported:
    """Write a model as ONNX: float32, any number of clips, any length.

    Parameters
    ----------
    model : its taps make up the embedding.
    path : the file; an existing one is replaced.
    with_frontend : take waveforms instead of normalised log-mels.

    Raises
    ------
    BadRequest : a package that export needs is not installed, the folder is not there, the model
        is a probe, or the network has no ONNX form.
    ExportFailed : onnxruntime's results differ from torch's; nothing was written.
    """
    check_installed()
    if model.spec.probed:
        raise BadRequest(f"{model.name} is a probe; export the model underneath")
    network = model.spec.network
    if isinstance(network, FrameMNConfig) and network.sequence == "mamba":
        raise BadRequest(f"{model.name} has no ONNX form: Mamba takes what opset {OPSET} lacks")
    if not path.parent.is_dir():
        raise BadRequest(f"no folder {str(path.parent)!r}; make it first")
    device = model.device
    try:
        model.cpu()
        with atomic(path) as temporary:
            _write(model, temporary, with_frontend)
            _describe(model, temporary, with_frontend)
            error = largest_difference(model, temporary, with_frontend)
            if not error <= TOLERANCE:
                raise ExportFailed(
                    f"onnxruntime's results differ from torch's by {error:.1e} of their size, "
                    f"more than {TOLERANCE:.0e}; nothing was written. Please report this"
                )
            size = temporary.stat().st_size
    finally:
        model.to(device)
    return Exported(path, size, error)


def check_installed() -> None:
    """Raise BadRequest unless the packages that export needs are installed."""
    require("onnx", "onnxruntime")


@torch.no_grad()
def largest_difference(model: AudioEmbedder, path: Path, with_frontend: bool) -> float:
    """The largest difference between onnxruntime's results and torch's.

    It is relative to the largest value of each tap or output. Torch runs this package's own front
    end and network, not compiled. Clips vary in number and length.
    """
    session = _session(path)
    name = session.get_inputs()[0].name
    detects = isinstance(model.backbone, FrameMN)
    sizes = [model.tap_sizes[tap] for tap in model.taps]
    worst = 0.0
    for wave in _clips(model):
        mel = model.frontend(wave)
        features = _features(model.backbone, mel, model.taps, detects)
        expected = [features[tap] for tap in model.taps]
        expected += [features[LOGITS], features[LOGITS].sigmoid()]
        expected += [features[STRONG].sigmoid()] if detects else []
        audio = wave if with_frontend else mel
        embedding, *others = map(torch.from_numpy, session.run(None, {name: audio.numpy()}))
        actual = [*torch.split(embedding, sizes, -1), *others]
        for ours, theirs in zip(expected, actual, strict=True):
            if ours.shape != theirs.shape:
                return math.inf
            difference = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-30))
            worst = difference if math.isnan(difference) else max(worst, difference)
    return worst


def _features(
    backbone: Backbone, mel: Tensor, taps: Sequence[str], detects: bool
) -> dict[str, Tensor]:
    names = {LOGITS, *taps} | ({STRONG} if detects else set())
    return features_of(mel, names, partial(outputs_of, backbone))


def _clips(model: AudioEmbedder) -> Iterator[Tensor]:
    """Clips [B, S] of noise that swells and fades under a tone: some of it loud, some quiet."""
    rate = model.sample_rate
    generator = torch.Generator().manual_seed(0)
    lengths = [(clips, round(seconds * rate)) for clips, seconds in CHECKED]
    for clips, samples in (*lengths, (2, minimum_samples(model.spec))):
        seconds = torch.arange(samples) / rate
        noise = torch.randn(clips, samples, generator=generator)
        swell = torch.sin(math.pi * seconds / seconds[-1]).square() + 1e-3
        yield 0.1 * noise * swell + 0.3 * torch.sin(2 * math.pi * 440 * seconds)


def _write(model: AudioEmbedder, path: Path, with_frontend: bool) -> None:
    graph = Graph(model, with_frontend).eval()
    name, axes, example = _input(model, with_frontend)
    outputs = ["embedding", "logits", "probabilities"]
    varying = {name: axes} | {output: {0: "batch"} for output in outputs}
    if graph.detects:
        outputs.append("frame_probabilities")
        varying["frame_probabilities"] = {0: "batch", 1: "output_frames"}
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # torch deprecates this in favour of torch.export, which takes up to a minute instead of
        # seconds. Its other warnings do not matter either: the results are checked afterwards.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (example,),
            path,
            input_names=[name],
            output_names=outputs,
            dynamic_axes=varying,
            opset_version=OPSET,
            dynamo=False,
        )


def _input(model: AudioEmbedder, with_frontend: bool) -> tuple[str, dict[int, str], Tensor]:
    """The input's name, its axes of any size with their names, and an example."""
    if with_frontend:
        return "waveform", {0: "batch", 1: "samples"}, torch.zeros(2, model.sample_rate)
    return "mel", {0: "batch", 2: "frames"}, torch.zeros(2, model.spec.mel.n_mels, 100)


def _describe(model: AudioEmbedder, path: Path, with_frontend: bool) -> None:
    """Add to the file what its user needs to know about it."""
    import onnx

    source, licence = _origin(model)
    facts = {
        "name": model.name,
        "version": __version__,
        "weights_sha256": model.weights_sha256,
        "source": source,
        "licence": licence,
        "sample_rate": model.sample_rate,
        "minimum_samples": minimum_samples(model.spec) if with_frontend else 1,
        "taps": model.taps,
        "tap_sizes": [model.tap_sizes[tap] for tap in model.taps],
        "labels": model.labels,
        "mel": asdict(model.spec.mel),
    }
    if isinstance(model.spec.network, FrameMNConfig):
        facts["frame_ms"] = FRAME_MS
    proto = onnx.load(path)
    proto.producer_name, proto.producer_version = "embedder", __version__
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _origin(model: AudioEmbedder) -> tuple[str, str]:
    """Where the model's weights are published, and their licence; "" where that is not known."""
    row = MODELS.get(model.name)
    if row is None or row.network != model.spec.network or not model.weights_sha256:
        return "", ""
    if row.sha256 not in (None, model.weights_sha256):
        return "", ""
    source = f"audio-embedder {__version__}" if row.bundled else row.url
    return source, "MIT" if source.startswith(MIT_WEIGHTS) else ""


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
