"""Makes what the benchmarks work on: random clips, files of them, models of random weights."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch is for the processes that run a network
    from embedder.model import AudioEmbedder

SECONDS: Final = 10.0
RATE: Final = 32_000


class _Format(NamedTuple):
    """How libav writes a file: container, codec, sample format, layout, options of the codec."""

    container: str
    codec: str
    samples: str
    layout: str = "mono"
    options: Mapping[str, str] = {}


FORMATS: Final[Mapping[str, _Format]] = {
    "wav": _Format("wav", "pcm_s16le", "s16"),
    "flac": _Format("flac", "flac", "s16"),
    # The one Vorbis encoder that every build of libav has is experimental, and stereo.
    "ogg": _Format("ogg", "vorbis", "fltp", "stereo", {"strict": "experimental"}),
}


def clip(seed: int, seconds: float = SECONDS, rate: int = RATE) -> NDArray[np.float32]:
    """Make pink noise [S], another for each seed.

    To a codec it is more like music than white noise.
    """
    rng = np.random.default_rng(seed)
    white = np.fft.rfft(rng.normal(size=round(seconds * rate)))
    wave = np.fft.irfft(white / np.sqrt(np.arange(len(white)) + 1))
    return np.asarray((0.1 * wave / wave.std()).clip(-1, 1), np.float32)


def encoded(wave: NDArray[np.float32], kind: str, rate: int = RATE) -> bytes:
    """Encode mono samples [S] as a file of one of FORMATS."""
    form = FORMATS[kind]
    channels = 2 if form.layout == "stereo" else 1
    data = np.repeat(wave[None], channels, 0)
    if form.samples == "s16":
        data = (data * 32_767).astype(np.int16)
    file = io.BytesIO()
    with av.open(file, "w", format=form.container) as container:
        stream: Any = container.add_stream(
            form.codec, rate=rate, layout=form.layout, options=dict(form.options)
        )
        frame = av.AudioFrame.from_ndarray(data, format=form.samples, layout=form.layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def wav_head(size: int) -> bytes:
    """Return the header of a WAV file with `size` bytes of mono 16-bit samples at RATE."""
    form = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    return b"RIFF%bWAVEfmt %b%bdata%b" % (
        struct.pack("<I", size + 36),
        struct.pack("<I", len(form)),
        form,
        struct.pack("<I", size),
    )


def random_model(name: str) -> AudioEmbedder:
    """Build a model of random weights whose BatchNorms are not trivial.

    It is as slow, and rounds as much, as a trained one.
    """
    import torch
    from torch import nn

    from embedder.model import AudioEmbedder

    torch.manual_seed(0)
    model = AudioEmbedder.build(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model


def write_checkpoint(name: str, folder: Path) -> Path:
    """Write `random_model` as a self-describing checkpoint."""
    from embedder import checkpoints

    model = random_model(name)
    path = folder / f"random-{name}.safetensors"
    checkpoints.save(path, model.spec, model.backbone.state_dict(), model.labels)
    return path
