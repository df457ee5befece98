"""MAMBA: Mamba-2 blocks in plain torch (arXiv 2405.21060; state 64 in arXiv 2503.11373).

Axes: B batch, T frames, D model dimension, I inner width, H heads, P values a head, N state,
c chunks, Q frames a chunk.

One head's state is a [P, N] matrix with a scalar decay:

    h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] outer b[t],    y[t] = h[t] c[t] + d x[t]

The states are computed in chunks (section 6 of the paper): inside a chunk by masked attention,
from chunk to chunk by a linear scan over the chunks' states. No exponent is positive.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.networks.recurrence import linear_scan

STATE: Final = 64  # N
CONV: Final = 3  # kernel of the causal convolution, in frames
EXPANSION: Final = 2  # inner width I, in model dimensions
CHUNK: Final = 64  # Q
EPSILON: Final = 1e-5


def head_size(dim: int) -> int:
    """P, the values a head: 64, or 32 at small dimensions, which would have too few heads."""
    return 32 if dim <= 128 else 64


def state_space(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The outputs y[t] = h[t] c[t] of the states h[t] = exp(log_decay[t]) h[t-1] + x[t] outer b[t].

    Parameters
    ----------
    x : Tensor [B, T, H, P]. log_decay : Tensor [B, T, H], at most 0. b, c : Tensor [B, T, N],
        shared by the heads.

    Returns
    -------
    Tensor [B, T, H, P].
    """
    steps = x.shape[1]
    # Zeros that fill the last chunk change no state: their input is 0, and their decay exp(0).
    x, log_decay, b, c = (_chunked(part, CHUNK) for part in (x, log_decay, b, c))  # B c Q ...
    total = log_decay.cumsum(2)  # B c Q H
    between = total[:, :, :, None] - total[:, :, None]  # from frame j to frame i, B c i j H
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).triu(1)
    decay = between.masked_fill(later[..., None], -torch.inf).exp()
    similarity = c @ b.transpose(2, 3)  # B c i j
    inside = torch.einsum("bkijh,bkjhp->bkihp", similarity[..., None] * decay, x)
    to_end = (total[:, :, -1:] - total).exp()  # B c Q H
    added = torch.einsum("bkjhp,bkjn->bkhpn", x * to_end[..., None], b)  # by each chunk
    states = linear_scan(total[:, :, -1, :, None, None].exp(), added)  # at each chunk's end
    before = functional.pad(states[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    carried = torch.einsum("bkhpn,bkin->bkihp", before, c) * total.exp()[..., None]
    return (inside + carried).flatten(1, 2)[:, :steps]


def _chunked(x: Tensor, size: int) -> Tensor:
    """[B, T, ...] -> [B, c, size, ...], the last chunk filled with zeros."""
    padding = -x.shape[1] % size
    x = functional.pad(x, (0, 0) * (x.ndim - 2) + (0, padding))
    return x.view(x.shape[0], -1, size, *x.shape[2:])


class Mamba2(nn.Module):
    """One Mamba-2 mixer; its parameters have the names of the authors' package."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = EXPANSION * dim
        self.heads = self.inner // head_size(dim)
        mixed = self.inner + 2 * STATE
        self.in_proj = nn.Linear(dim, self.inner + mixed + self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, CONV, padding=CONV - 1, groups=mixed)
        self.dt_bias = nn.Parameter(_inverse_softplus(_log_uniform(self.heads, 1e-3, 1e-1)))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=EPSILON)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        sizes = [self.inner, self.inner + 2 * STATE, self.heads]
        gate, mixed, dt = torch.split(self.in_proj(frames), sizes, -1)
        steps = frames.shape[1]
        mixed = functional.silu(self.conv1d(mixed.transpose(1, 2))[..., :steps]).transpose(1, 2)
        x, b, c = torch.split(mixed, [self.inner, STATE, STATE], -1)
        x = x.view(*x.shape[:2], self.heads, -1)  # B T H P
        dt = functional.softplus(dt + self.dt_bias)  # B T H
        y = state_space(x * dt[..., None], -dt * self.A_log.exp(), b, c)
        y = (y + self.D[:, None] * x).flatten(2)  # B T I
        out: Tensor = self.out_proj(self.norm(y * functional.silu(gate)))
        return out


def _log_uniform(count: int, low: float, high: float) -> Tensor:
    return torch.empty(count).uniform_(math.log(low), math.log(high)).exp()


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
