"""The linear recurrence h[t] = a[t] h[t-1] + b[t], computed in parallel, and minGRU.

Axes: B batch, T frames, D dimension.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from embedder.networks.blocks import tracing

TRACED_ROUNDS: Final = 17  # of a recorded graph: enough for 87 minutes of 40 ms frames


def linear_scan(decay: Tensor, drive: Tensor) -> Tensor:
    """The sequence h with h[0] = b[0] and h[t] = a[t] h[t-1] + b[t].

    Two neighbouring steps (a, b) and (a', b') are one step (a a', a' b + b'). So neighbours are
    merged, the sequence of half the length is scanned in the same way, and the steps between are
    filled in: 2 T multiplications in log2(T) rounds. There is no logarithm, division or
    cumulative product. With decays in [0, 1] nothing overflows, and where a product underflows,
    what it carries has been forgotten.

    Parameters
    ----------
    decay : Tensor, a [B, T, ...], |a| <= 1; a[0] is not used. Broadcasts against `drive`.
    drive : Tensor, b [B, T, ...].

    Returns
    -------
    Tensor, h [B, T, ...].
    """
    if tracing():  # a graph for any number of steps
        return _doubled_scan(decay, drive)
    steps = drive.shape[1]
    if steps == 1:
        return drive
    pairs = steps // 2
    later = decay[:, 1 : 2 * pairs : 2]
    odd = linear_scan(  # h[1], h[3], ...
        decay[:, 0 : 2 * pairs : 2] * later,
        torch.addcmul(drive[:, 1 : 2 * pairs : 2], later, drive[:, 0 : 2 * pairs : 2]),
    )
    after = torch.addcmul(drive[:, 2::2], decay[:, 2::2], odd[:, : (steps - 1) // 2])
    even = torch.cat([drive[:, :1], after], 1)  # h[0], h[2], ...
    scanned = torch.stack([even[:, :pairs], odd], 2).flatten(1, 2)
    return torch.cat([scanned, even[:, pairs:]], 1) if steps % 2 else scanned


def _doubled_scan(decay: Tensor, drive: Tensor) -> Tensor:
    """`linear_scan` of at most 2**TRACED_ROUNDS steps; each round looks back twice as far."""
    decay = decay.expand_as(drive)
    for back in (2**number for number in range(TRACED_ROUNDS)):
        drive = torch.addcmul(drive, decay, _delayed(drive, back))
        decay = decay * _delayed(decay, back)
    return drive


def _delayed(x: Tensor, steps: int) -> Tensor:
    """x[t - steps], with zeros before the beginning; only zeros if `steps` is at least T."""
    return torch.cat([torch.zeros_like(x[:, :steps]), x[:, :-steps]], 1)


class MinGRU(nn.Module):
    """h[t] = (1 - z[t]) h[t-1] + z[t] g(x[t]), where g is positive (arXiv 2410.01201)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_hidden_and_gate = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        hidden, gate = self.to_hidden_and_gate(x).chunk(2, -1)
        candidate = torch.where(hidden >= 0, hidden + 0.5, hidden.sigmoid())
        return linear_scan((-gate).sigmoid(), gate.sigmoid() * candidate)


class BiMinGRU(nn.Module):
    """A minGRU in each direction of time, and a projection of both to D values."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.forward_minGRU = MinGRU(dim)
        self.backward_minGRU = MinGRU(dim)
        self.to_out = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        backward = self.backward_minGRU(x.flip(1)).flip(1)
        out: Tensor = self.to_out(torch.cat([self.forward_minGRU(x), backward], -1))
        return out
