"""Waveform to normalised log-mel spectrogram, deterministic, in plain torch.

Axes: B batch, S samples, K fft bins, M mel bands, F frames.
Both published conventions (32 kHz and 16 kHz) are values of `MelConfig`.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.zoo import MelConfig

PREEMPHASIS: Final = 0.97


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Kaldi's mel scale."""
    return 1127.0 * torch.log1p(hertz / 700.0)


def mel_bank(config: MelConfig) -> Tensor:
    """Triangular filters, linear in mel, without area normalisation (Kaldi's convention).

    Returns
    -------
    Tensor, float32, shape [M, K] with K = n_fft / 2 + 1; the Nyquist bin has weight 0.
    """
    bins = config.n_fft // 2
    low, high = hertz_to_mel(torch.tensor([config.fmin, config.fmax], dtype=torch.float64))
    step = (high - low) / (config.n_mels + 1)
    left = low + step * torch.arange(config.n_mels, dtype=torch.float64)[:, None]  # M 1
    hertz = torch.arange(bins, dtype=torch.float64) * config.sample_rate / config.n_fft
    mel = hertz_to_mel(hertz)[None]  # 1 K-1
    rising = (mel - left) / step
    falling = (left + 2 * step - mel) / step
    bank = torch.minimum(rising, falling).clamp(min=0.0)
    return functional.pad(bank, (0, 1)).float()


def reflect_pad(wave: Tensor, pad: int) -> Tensor:
    """Mirror `pad` samples at both ends without repeating the edge: [B, S] -> [B, S + 2 pad].

    Where the clip is shorter than the pad, where torch's own reflection fails, the mirror
    goes on back and forth (numpy's "reflect"), and a single sample repeats; wherever torch
    reflects, the result is the same.
    """
    samples = wave.shape[-1]
    if samples > pad:
        return functional.pad(wave[:, None], (pad, pad), mode="reflect")[:, 0]
    period = max(1, 2 * (samples - 1))
    index = torch.arange(-pad, samples + pad, device=wave.device) % period
    return wave[:, torch.minimum(index, period - index)] if samples > 1 else wave[:, index * 0]


class LogMel(nn.Module):
    """Pre-emphasis, centred power spectrum, mel bank, logarithm, normalisation.

    Any clip of at least one sample works: a lone sample is repeated once, because
    pre-emphasis shortens a clip by one.
    """

    # Constants of the configuration, not weights: never saved, never loaded.
    window: Tensor
    bank: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        hann = torch.hann_window(config.window, periodic=False)
        margin = config.n_fft - config.window
        centred = functional.pad(hann, (margin // 2, margin - margin // 2))
        self.register_buffer("window", centred, persistent=False)
        self.register_buffer("bank", mel_bank(config).T.contiguous(), persistent=False)

    def n_frames(self, samples: int) -> int:
        """Frames of a clip of so many samples."""
        return 1 + max(1, samples - 1) // self.config.hop

    def forward(self, wave: Tensor) -> Tensor:
        """float32 [B, S] in about [-1, 1] -> [B, M, F], most values within [-2, 2]."""
        cfg = self.config
        if wave.shape[-1] == 1:
            wave = wave.expand(-1, 2)
        wave = wave[:, 1:] - PREEMPHASIS * wave[:, :-1]  # B S -> B S-1
        wave = reflect_pad(wave, cfg.n_fft // 2)
        frames = wave.unfold(-1, cfg.n_fft, cfg.hop)  # B F n_fft, a view
        spectrum = torch.fft.rfft(frames * self.window)  # B F K
        power = spectrum.real.square() + spectrum.imag.square()
        mel = power @ self.bank  # B F K -> B F M
        mel = mel + cfg.floor if cfg.floor_mode == "add" else mel.clamp(min=cfg.floor)
        normalised: Tensor = (mel.log() + 4.5) / 5.0
        return normalised.transpose(1, 2)  # B M F
