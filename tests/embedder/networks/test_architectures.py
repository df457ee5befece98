"""DyMN and frame-wise MN through everything that MN goes through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import hear_api
from embedder.cli import main
from embedder.model import AudioEmbedder
from embedder.testing import write_wav
from tests.cli_kit import noise, rows, tiny_model, write_weights

# Name, sample rate, labels, and size of the default embedding at width 0.4.
MODELS = {
    "dymn04_as": (32_000, 527, 320),
    "fmn04_strong": (16_000, 447, 320),
    "fmn04_weak": (16_000, 527, 320),
    "fmn04+tf-104_strong": (16_000, 447, 320),
    "fmn04+gru-104_strong": (16_000, 447, 320),
    "fmn04+hybrid-104_strong": (16_000, 447, 320),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[AudioEmbedder]:
    with tiny_model(request.param) as built:
        yield built


def clips(model: AudioEmbedder, seconds: float, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, round(seconds * model.sample_rate), generator=generator) * 0.1


def error(given: Tensor, expected: Tensor) -> float:
    """The relative error of vectors: values of random networks reach thousands."""
    return float((given - expected).norm() / expected.norm())


def tolerance(model: AudioEmbedder) -> float:
    """Kernels that a random DyMN mixes by attention magnify rounding."""
    return 1e-3 if model.name.startswith("dymn") else 1e-4


def test_sizes_and_labels(model: AudioEmbedder) -> None:
    rate, n_labels, size = MODELS[model.name]
    assert (model.sample_rate, len(model.labels), model.scene_embedding_size) == (
        rate,
        n_labels,
        size,
    )
    assert len(set(model.labels)) == n_labels


@pytest.mark.parametrize("seconds", [0.05, 3.0, 10.0, 25.0])
def test_scene_timestamps_and_tags_of_any_length(model: AudioEmbedder, seconds: float) -> None:
    waves = clips(model, seconds, count=1)
    scene, tags = model.scene(waves), model.tags(waves)
    assert scene.shape == (1, model.scene_embedding_size)
    assert tags.shape == (1, len(model.labels))
    assert scene.isfinite().all()
    assert 0 <= float(tags.min()) <= float(tags.max()) <= 1
    vectors, ms = model.timestamps(waves, hop_ms=50 if seconds < 1 else 1000)
    count = int(seconds * (20 if seconds < 1 else 1)) + 1
    assert (vectors.shape, ms.shape) == ((1, count, model.timestamp_embedding_size), (1, count))
    assert vectors.isfinite().all()


def test_every_tap_alone_and_batched(model: AudioEmbedder) -> None:
    waves = clips(model, 1.0)
    batched = model.features(waves)
    assert {tap: values.shape[1] for tap, values in batched.items()} == model.tap_sizes
    for index, wave in enumerate(waves):
        for tap, values in model.features(wave).items():
            assert error(values[0], batched[tap][index]) < tolerance(model), tap


def test_hear_takes_them(model: AudioEmbedder, tmp_path: Path) -> None:
    weights = write_weights(model, tmp_path / "weights.pt")
    hear = hear_api.load_model(str(weights), name=model.name, device="cpu")
    assert (hear.sample_rate, hear.scene_embedding_size) == (MODELS[model.name][0], 320)
    waves = clips(model, 0.3)
    scene = hear_api.get_scene_embeddings(waves, hear)
    assert error(scene, model.scene(waves)) < tolerance(model)
    vectors, ms = hear_api.get_timestamp_embeddings(waves, hear)
    assert (vectors.shape, ms[0].tolist()) == ((2, 7, 320), [50.0 * t for t in range(7)])


def test_the_command_line_takes_them(model: AudioEmbedder, tmp_path: Path) -> None:
    weights = write_weights(model, tmp_path / "weights.pt")
    sound = write_wav(tmp_path / "noise.wav", noise(0.5), 32_000)
    table = tmp_path / "out.parquet"
    line = ["embed", str(sound), "-o", str(table), "--model", model.name, "--device", "cpu"]
    assert main([*line, "--weights", str(weights)]) == 0
    [row] = rows(table)
    assert row["error"] is None
    assert (len(row["embedding"]), row["seconds"]) == (320, 0.5)
    assert np.isfinite(row["embedding"]).all()
