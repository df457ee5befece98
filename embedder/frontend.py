"""Waveform to normalised log-mel spectrogram, deterministic, in plain torch.

Axes: B batch, S samples, K fft bins, M mel bands, F frames, f some of the frames.
Both published conventions (32 kHz and 16 kHz) are values of `MelConfig`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.zoo import MelConfig

# The feature that is a log-mel's mean over time.
MEL: Final = "mel"

PREEMPHASIS: Final = 0.97
# The normalisation of log-mels: (log power + SHIFT) / SCALE.
SHIFT: Final = 4.5
SCALE: Final = 5.0
# How many frames a CPU computes together: what one step leaves to the next is then still cached.
FRAMES_TOGETHER: Final = 512
# How many neighbouring mel bands are multiplied together, with no bins but those they have weights
# for.
BANDS_TOGETHER: Final = 16


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Hertz -> mel, on Kaldi's scale; any shape."""
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

    The result is that of torch's reflection. A clip no longer than the pad, with which torch's
    fails, is mirrored back and forth (numpy's "reflect"); a single sample is repeated.
    """
    samples = wave.shape[-1]
    if samples > pad:
        return functional.pad(wave[:, None], (pad, pad), mode="reflect")[:, 0]
    period = max(1, 2 * (samples - 1))
    index = torch.arange(-pad, samples + pad, device=wave.device) % period
    return wave[:, torch.minimum(index, period - index)] if samples > 1 else wave[:, index * 0]


def pre_emphasised(wave: Tensor, pad: int) -> Tensor:
    """x[n] - 0.97 x[n-1], mirrored by `pad` at both ends: [B, S] -> [B, S - 1 + 2 pad], S >= 2."""
    samples = wave.shape[-1] - 1
    if samples <= pad:
        return reflect_pad(wave[:, 1:] - PREEMPHASIS * wave[:, :-1], pad)
    padded = wave.new_empty(len(wave), samples + 2 * pad)
    inside = padded[:, pad : pad + samples]
    torch.add(wave[:, 1:], wave[:, :-1], alpha=-PREEMPHASIS, out=inside)
    padded[:, :pad] = padded[:, pad + 1 : 2 * pad + 1].flip(-1)
    padded[:, pad + samples :] = padded[:, samples - 1 : pad + samples - 1].flip(-1)
    return padded


class Filters(NamedTuple):
    """Neighbouring mel bands, and the bins of the spectrum that any of them has weights for."""

    bands: slice
    bins: slice


def filter_groups(bank: Tensor) -> tuple[Filters, ...]:
    """A bank [M, K] cut into groups of bands and bins that leave out most of its zeros.

    Bands without weights have no bins.
    """
    groups = []
    for first in range(0, len(bank), BANDS_TOGETHER):
        bands = slice(first, first + BANDS_TOGETHER)
        used = bank[bands].any(0).nonzero().flatten().tolist()
        groups.append(Filters(bands, slice(used[0], used[-1] + 1) if used else slice(0)))
    return tuple(groups)


def normalise_(power: Tensor, config: MelConfig) -> Tensor:
    """Mel power, any shape, to what networks take, in place: floor, logarithm, normalisation."""
    if config.floor_mode == "add":
        power.add_(config.floor)
    else:
        power.clamp_(min=config.floor)
    return power.log_().add_(SHIFT).div_(SCALE)


class LogMel(nn.Module):
    """Pre-emphasis, centred power spectrum, mel bank, logarithm, normalisation.

    A clip of any length works. A single sample is repeated once, because pre-emphasis shortens a
    clip by one.
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
        self.register_buffer("bank", mel_bank(config), persistent=False)
        self._groups = filter_groups(self.bank)

    def n_frames(self, samples: int) -> int:
        """How many mel frames a clip of this many samples has."""
        return 1 + max(1, samples - 1) // self.config.hop

    def forward(self, wave: Tensor) -> Tensor:
        """float32 [B, S] in about [-1, 1] -> float32 [B, M, F], most values within [-2, 2].

        Gradients pass to a waveform that requires them. Neighbouring windows of timestamps share
        most of their frames, which are computed anew all the same: it costs a twentieth of what
        the network takes.
        """
        if wave.shape[-1] == 1:
            wave = wave.expand(-1, 2)
        if wave.requires_grad and torch.is_grad_enabled():
            return self._differentiable(wave)
        return self._fast(wave)

    def _differentiable(self, wave: Tensor) -> Tensor:
        """What `_fast` gives, without writing into any tensor that a gradient needs."""
        cfg = self.config
        emphasised = wave[:, 1:] - PREEMPHASIS * wave[:, :-1]  # B S -> B S-1
        frames = reflect_pad(emphasised, cfg.n_fft // 2).unfold(-1, cfg.n_fft, cfg.hop)  # B F n_fft
        spectrum = torch.view_as_real(torch.fft.rfft(frames * self.window))  # B F K 2
        mel = self.bank @ spectrum.square().sum(-1).mT  # B M F
        mel = mel + cfg.floor if cfg.floor_mode == "add" else mel.clamp(min=cfg.floor)
        return (mel.log() + 4.5) / 5.0

    @torch.no_grad()
    def _fast(self, wave: Tensor) -> Tensor:
        frames = self.n_frames(wave.shape[-1])
        out = wave.new_empty(len(wave), self.config.n_mels, frames)
        together = FRAMES_TOGETHER if wave.device.type == "cpu" else max(1, len(wave) * frames)
        clips = max(1, together // frames)
        for part, log_mel in zip(torch.split(wave, clips), torch.split(out, clips), strict=True):
            self._write(part, log_mel, together)
        return out

    def _write(self, wave: Tensor, out: Tensor, together: int) -> None:
        """Write the log-mel of [B, S] into `out` [B, M, F], `together` frames at a time.

        Several clips have at most `together` frames in all.
        """
        cfg = self.config
        clips, bands, count = out.shape
        padded = pre_emphasised(wave, cfg.n_fft // 2)
        frames = padded.unfold(-1, cfg.n_fft, cfg.hop)  # B F n_fft, a view
        mel = out[0] if clips == 1 else out.new_empty(bands, clips * count)
        parts = zip(torch.split(frames, together, 1), torch.split(mel, together, 1), strict=True)
        for part, mel_part in parts:
            self._write_mel_power(part, mel_part)
        normalise_(mel, cfg)
        if clips > 1:
            out.copy_(mel.view(bands, clips, count).transpose(0, 1))

    def _write_mel_power(self, frames: Tensor, out: Tensor) -> None:
        """Write the mel power of frames [B, f, n_fft] into `out` [M, B f]."""
        spectrum = torch.fft.rfft(frames * self.window).flatten(0, 1)  # B f, K
        squares = torch.view_as_real(spectrum).square_()  # in place: one pass over the memory
        power = (squares[..., 0] + squares[..., 1]).T
        for bands, bins in self._groups:
            torch.mm(self.bank[bands, bins], power[bins], out=out[bands])
