"""The corpus keeps its power, and mixtures follow from their step."""

from __future__ import annotations

import torch

from embedder.zoo import MEL_32K
from eval.data import corpus, synth
from eval.data.mixing import MixConfig, Mixer
from tests.tones import RATE


def test_a_mixture_follows_from_its_step(sounds: corpus.Corpus) -> None:
    mixer = Mixer(sounds, MixConfig(frames=400), seed=3)
    for step in range(8):
        mel = mixer.batch(step)
        assert mel.shape[1] == 128
        assert mel.isfinite().all()
        assert torch.equal(mel, Mixer(sounds, MixConfig(frames=400), seed=3).batch(step))


def test_mel_power_survives_the_corpus(sounds: corpus.Corpus) -> None:
    from embedder.frontend import LogMel

    name, wave = next(synth.sounds(1))
    clip = next(clip for clip in sounds.clips if clip.path == name)
    stored = corpus.to_log_mel(torch.from_numpy(sounds.power(clip))).T
    exact = LogMel(MEL_32K)(torch.from_numpy(wave[: 30 * RATE])[None])[0]
    assert (stored - exact).abs().max() < 2e-3
