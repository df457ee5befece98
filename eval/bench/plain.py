"""The published procedure without any optimisation: the benchmarks compare engines with it.

It runs step by step in eager torch: the mel bank is made in every call, BatchNorm is not folded,
the whole network runs whatever features are asked for, DyMN uses grouped convolution over the
batch, and timestamps are computed one window after the other (arXiv 2303.01879, section III;
2310.15648).

Axes: B clips, S samples, M mel bands, F frames, D values, C channels, f frequency, t time.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from embedder.frontend import MEL, PREEMPHASIS, LogMel, mel_bank, normalise_
from embedder.model import AudioEmbedder
from embedder.networks.dymn import DynamicBlock, Forms
from embedder.networks.dynamic import DynamicConv, Form
from embedder.windows import timestamp_plan


class PlainEmbedder:
    """Computes a model's scene and timestamp embeddings by the published procedure."""

    def __init__(self, model: AudioEmbedder) -> None:
        self.model = model
        self.backbone = grouped(model.backbone)
        self.taps = [*(tap for tap in model.taps if tap != MEL), "logits"]

    @torch.no_grad()
    def scene(self, wave: Tensor) -> Tensor:
        """Embed clips of at most one window: [B, S] -> [B, D]."""
        mel = log_mel(wave, self.model.frontend)
        features = {MEL: mel.mean(-1), **self.backbone.features_by_name(mel, self.taps)}
        return self.model.join(features)

    @torch.no_grad()
    def timestamps(self, wave: Tensor) -> Tensor:
        """Embed clips at T timestamps: [B, S] -> [B, T, D]."""
        plan = timestamp_plan(self.model.sample_rate)
        padded = functional.pad(wave[:, None], (plan.window // 2,) * 2, mode="reflect")[:, 0]
        starts = map(plan.start, range(plan.n_windows(wave.shape[1])))
        return torch.stack([self.scene(padded[:, a : a + plan.window]) for a in starts], 1)


def log_mel(wave: Tensor, frontend: LogMel) -> Tensor:
    """Compute log-mels of a whole batch at once: [B, S] -> [B, M, F]."""
    cfg = frontend.config
    wave = wave[:, 1:] - PREEMPHASIS * wave[:, :-1]
    spectrum = torch.stft(
        wave, cfg.n_fft, cfg.hop, window=frontend.window, center=True, return_complex=True
    )
    power = torch.view_as_real(spectrum).square().sum(-1)
    mel = mel_bank(cfg).to(power) @ power
    return normalise_(mel, cfg)


def grouped(backbone: Any) -> Any:
    """Return a copy whose dynamic convolutions treat the batch as groups of one convolution."""
    network = copy.deepcopy(backbone)
    for module in network.modules():
        if isinstance(module, DynamicConv):
            module.forward = partial(_grouped_convolution, module)  # type: ignore[method-assign]
        if isinstance(module, DynamicBlock):
            module.forward = partial(_block, module)  # type: ignore[method-assign]
    return network


def _block(block: DynamicBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a block on the whole batch at once, in the memory format in which it comes.

    The batch lies in the channels there: each clip is a group of the convolution.
    """
    context, forms = block.context_gen(x), Forms(*3 * [Form.KERNELS])
    return block.transform(x, block.dynamics(context, forms), forms), context.vector


def _grouped_convolution(conv: DynamicConv, x: Tensor, kernels: Tensor, _: Form) -> Tensor:
    """Convolve each clip with its kernels: [B, I, f, t], [B, O, I/groups, k, k] -> [B, O, f, t].

    I and O are the channels before and after; k is the size of the kernels.
    """
    clips = len(x)
    merged = x.reshape(1, -1, *x.shape[2:])
    padding = conv.shape[-1] // 2
    y = functional.conv2d(
        merged, kernels.flatten(0, 1), None, conv.stride, padding, groups=clips * conv.groups
    )
    return y.view(clips, -1, *y.shape[2:])
