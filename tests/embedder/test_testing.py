"""`embedder.testing` and `service.testing` do what docs/testing.md shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from embedder import testing
from embedder.audio.decode import load_audio
from tests.interpreter import in_subprocess
from tests.sample_kit import Sample, samples
from tests.shared import ROOT

BLOCKS = list(samples(ROOT / "docs" / "testing.md"))


@pytest.mark.parametrize("sample", BLOCKS, ids=lambda sample: str(sample.line))
def test_what_the_page_shows_runs(sample: Sample) -> None:
    assert in_subprocess(sample.text) == ""


def test_the_page_shows_both() -> None:
    assert [sample.language for sample in BLOCKS] == ["python", "python"]


def test_models_follow_from_their_seed_and_leave_torchs_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (testing.tiny_model(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    scenes = [model.scene(testing.sine(0.2)) for model in (first, same, other)]
    assert torch.equal(scenes[0], scenes[1])
    assert not torch.allclose(scenes[0], scenes[2])


@pytest.mark.parametrize("name", ["mn01_as", "dymn04_as", "fmn04_strong"])
def test_answers_differ_from_sound_to_sound(name: str) -> None:
    model = testing.tiny_model(name)
    rate = model.sample_rate
    waves = [testing.sine(0.5, sample_rate=rate), testing.noise(0.5, 7, sample_rate=rate)]
    scenes = [model.scene(wave) for wave in waves]
    logits = [model.features(wave, taps=["logits"])["logits"] for wave in waves]
    for one, other in (scenes, logits):
        assert float((one - other).norm() / one.norm()) > 0.05
        assert float(one.std()) > 1e-3


def test_files_hold_the_sounds(tmp_path: Path) -> None:
    for rate in (16_000, 32_000):
        sound = testing.sine(0.5, hertz=1000, sample_rate=rate) + testing.noise(
            0.5, sample_rate=rate
        )
        path = testing.write_wav(tmp_path / "new" / f"{rate}.wav", sound, rate)
        expected = np.clip(sound, -1, 1)
        np.testing.assert_allclose(load_audio(path, rate), expected, atol=1e-4)
        assert path.read_bytes() == testing.wav_bytes(sound, rate)


def test_every_seed_is_another_noise() -> None:
    sounds = [testing.noise(0.1, seed) for seed in range(3)]
    assert all(sound.dtype == np.float32 and sound.shape == (3200,) for sound in sounds)
    assert len({sound.tobytes() for sound in sounds}) == 3
    assert testing.noise(0.1, 2).tobytes() == sounds[2].tobytes()
