"""The published procedure, written down plainly: what every speed here is compared with.

One step after the other in eager torch: the mel bank made in every call, BatchNorm as it is, the
network run to its end whatever is asked for, DyMN by grouped convolution over the batch, timestamps
one window after the other (arXiv 2303.01879, section III; 2310.15648).

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
    """A model's scene and timestamp embeddings, the published way."""

    def __init__(self, model: AudioEmbedder) -> None:
        self.model = model
        self.backbone = grouped(model.backbone)
        self.taps = [*(tap for tap in model.taps if tap != MEL), "logits"]

    @torch.no_grad()
    def scene(self, wave: Tensor) -> Tensor:
        """[B, S] of one window at most -> [B, D]."""
        mel = log_mel(wave, self.model.frontend)
        found = {MEL: mel.mean(-1), **self.backbone.features_by_name(mel, self.taps)}
        return self.model.join(found)

    @torch.no_grad()
    def timestamps(self, wave: Tensor) -> Tensor:
        """[B, S] -> [B, T, D]."""
        plan = timestamp_plan(self.model.sample_rate)
        padded = functional.pad(wave[:, None], (plan.window // 2,) * 2, mode="reflect")[:, 0]
        starts = map(plan.start, range(plan.n_windows(wave.shape[1])))
        return torch.stack([self.scene(padded[:, a : a + plan.window]) for a in starts], 1)


def log_mel(wave: Tensor, frontend: LogMel) -> Tensor:
    """[B, S] -> [B, M, F], of a whole batch at once."""
    cfg = frontend.config
    wave = wave[:, 1:] - PREEMPHASIS * wave[:, :-1]
    spectrum = torch.stft(
        wave, cfg.n_fft, cfg.hop, window=frontend.window, center=True, return_complex=True
    )
    power = torch.view_as_real(spectrum).square().sum(-1)
    mel = mel_bank(cfg).to(power) @ power
    return normalise_(mel, cfg)


def grouped(backbone: Any) -> Any:
    """A copy whose dynamic convolutions make groups of the batch."""
    network = copy.deepcopy(backbone)
    for module in network.modules():
        if isinstance(module, DynamicConv):
            module.forward = partial(_grouped_convolution, module)  # type: ignore[method-assign]
        if isinstance(module, DynamicBlock):
            module.forward = partial(_block, module)  # type: ignore[method-assign]
    return network


def _block(block: DynamicBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """The whole batch at once, in the order of axes in which it comes: groups are channels."""
    context, forms = block.context_gen(x), Forms(*3 * [Form.KERNELS])
    return block.transform(x, block.dynamics(context, forms), forms), context.vector


def _grouped_convolution(conv: DynamicConv, x: Tensor, kernels: Tensor, _: Form) -> Tensor:
    """[B, I, f, t], [B, O, I/groups, k, k] -> [B, O, f', t']."""
    clips = len(x)
    merged = x.reshape(1, -1, *x.shape[2:])
    padding = conv.shape[-1] // 2
    y = functional.conv2d(
        merged, kernels.flatten(0, 1), None, conv.stride, padding, groups=clips * conv.groups
    )
    return y.view(clips, -1, *y.shape[2:])
