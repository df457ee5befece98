"""What the bulk and server benchmarks work on: random clips, random weights; and their tables."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

SECONDS: Final = 10.0
RATE: Final = 32_000

Row = Mapping[str, str | float]


class _Format(NamedTuple):
    """What makes a file: container, codec, sample format, layout, options of the codec."""

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
    """Pink noise [S], another one a seed: for codecs more like music than white noise is."""
    rng = np.random.default_rng(seed)
    white = np.fft.rfft(rng.normal(size=round(seconds * rate)))
    wave = np.fft.irfft(white / np.sqrt(np.arange(len(white)) + 1))
    return np.asarray((0.1 * wave / wave.std()).clip(-1, 1), np.float32)


def encoded(wave: NDArray[np.float32], kind: str, rate: int = RATE) -> bytes:
    """Mono samples [S] as a file of one of FORMATS."""
    form = FORMATS[kind]
    channels = 2 if form.layout == "stereo" else 1
    data = np.repeat(wave[None], channels, 0)
    if form.samples == "s16":
        data = (data * 32_767).astype(np.int16)
    file = io.BytesIO()
    with av.open(file, "w", format=form.container) as container:
        stream = container.add_stream(
            form.codec, rate=rate, layout=form.layout, options=dict(form.options)
        )
        frame = av.AudioFrame.from_ndarray(data, format=form.samples, layout=form.layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_checkpoint(name: str, folder: Path) -> Path:
    """A self-describing checkpoint of a network with random weights."""
    import torch

    from embedder import checkpoints
    from embedder.model import AudioEmbedder

    torch.manual_seed(0)
    model = AudioEmbedder.build(name)
    path = folder / f"random-{name}.safetensors"
    checkpoints.save(path, model.spec, model.backbone.state_dict(), model.labels)
    return path


def publish(title: str, rows: Sequence[Row], out: Path | None) -> None:
    """Print a table; write the same as JSON where a path is given."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=max(100, Console().width)).print(table)
    if out is not None:
        out.write_text(json.dumps({"title": title, "rows": list(map(dict, rows))}, indent=1))
