"""The log-mel front end against the plain way to write it down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embedder.frontend import PREEMPHASIS, LogMel, filter_groups, mel_bank, reflect_pad
from embedder.zoo import MEL_16K, MEL_32K, MODELS, MelConfig
from tests.tensors import waves

CONFIGS = sorted({spec.mel for spec in MODELS.values()}, key=repr)


def plain(wave: Tensor, config: MelConfig) -> Tensor:
    """Every step by itself, in float64."""
    wave = wave.double()
    wave = wave[:, 1:] - PREEMPHASIS * wave[:, :-1]
    padded = reflect_pad(wave, config.n_fft // 2)
    spectrum = torch.stft(
        padded,
        config.n_fft,
        config.hop,
        config.window,
        torch.hann_window(config.window, periodic=False, dtype=torch.float64),
        center=False,
        return_complex=True,
    )
    mel = mel_bank(config).double() @ spectrum.abs().square()
    mel = mel + config.floor if config.floor_mode == "add" else mel.clamp(min=config.floor)
    return (mel.log() + 4.5) / 5.0


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("samples", [300, 513, 514, 515, 1_601, 40_000])
def test_every_published_front_end(config: MelConfig, samples: int) -> None:
    wave = waves(2, samples)
    ours = LogMel(config)(wave)
    assert ours.shape == (2, config.n_mels, LogMel(config).n_frames(samples))
    assert (ours - plain(wave, config)).abs().max() < 1e-3
    assert (ours - plain(wave, config)).abs().mean() < 1e-6


def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    wave = waves(5, 10 * 32_000)  # more than one part
    together = LogMel(MEL_32K)(wave)
    for index in range(5):
        assert torch.equal(LogMel(MEL_32K)(wave[index : index + 1])[0], together[index])


def test_the_callers_samples_stay_as_they_are() -> None:
    wave = waves(1, 5_000)
    before = wave.clone()
    LogMel(MEL_32K)(wave)
    assert torch.equal(wave, before)


def test_a_lone_sample_counts_twice() -> None:
    lone = torch.full((1, 1), 0.5)
    assert torch.equal(LogMel(MEL_16K)(lone), LogMel(MEL_16K)(lone.expand(1, 2)))


@pytest.mark.parametrize("low", [0.0, 500.0])
def test_groups_hold_all_of_the_bank(low: float) -> None:
    bank = mel_bank(replace(MEL_32K, fmin=low))
    rebuilt = torch.zeros_like(bank)
    for bands, bins in filter_groups(bank):
        rebuilt[bands, bins] += bank[bands, bins]
    assert torch.equal(rebuilt, bank)


@pytest.mark.parametrize("pad", [1, 7, 30])
def test_padding_mirrors_like_torch(pad: int) -> None:
    wave = waves(2, 31)
    expected = functional.pad(wave[:, None], (pad, pad), mode="reflect")[:, 0]
    assert torch.equal(reflect_pad(wave, pad), expected)
