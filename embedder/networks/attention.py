"""Attention over time: layers of TF, ATT and HYBRID (arXiv 2503.11373, II-B).

Axes: B batch, T frames, D model dimension, H heads, E values a head, d size of any last axis.
Attribute names are the published file format and must not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.networks.blocks import Constants
from embedder.networks.recurrence import BiMinGRU

FEED_FORWARD: Final = 4  # width of feed-forward layers, in model dimensions
ROTARY_BASE: Final = 10_000.0


def n_heads(dim: int) -> int:
    """How many heads attention has at a model dimension."""
    return 8 if dim >= 128 else 4


class RMSNorm(nn.Module):
    """Root mean square norm: x / ||x|| sqrt(d) gamma (arXiv 1910.07467)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        scale = math.sqrt(x.shape[-1]) * self.gamma
        normalised: Tensor = functional.normalize(x, dim=-1)
        return normalised * scale


class RotaryPositions(Constants):
    """Rotates pairs of neighbouring values by angles that grow with time (arXiv 2104.09864)."""

    freqs: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        exponents = torch.arange(0, dim, 2, dtype=torch.float64)[: dim // 2] / dim
        self.register_constant("freqs", (ROTARY_BASE**-exponents).float())

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, T, E] -> the same shape."""
        times = torch.arange(x.shape[2], device=x.device, dtype=self.freqs.dtype)
        angles = times[:, None] * self.freqs  # T E/2
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        left, right = x[..., 0::2], x[..., 1::2]
        rotated = torch.stack([left * cos - right * sin, right * cos + left * sin], -1)
        return rotated.flatten(-2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, H E] -> [B, H, T, E]."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, E] -> [B, T, H E]."""
    return x.transpose(1, 2).flatten(2)


class GatedAttention(nn.Module):
    """Self-attention with rotary positions and a sigmoid gate for each head and frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = n_heads(dim)
        self.pos_encoding = RotaryPositions(dim // self.heads)
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_gates = nn.Linear(dim, self.heads)
        self.to_out = nn.Sequential(nn.Linear(dim, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; the caller adds the input."""
        x = self.norm(x)
        query, key, value = (split_heads(part, self.heads) for part in self.to_qkv(x).chunk(3, -1))
        query, key = self.pos_encoding(query), self.pos_encoding(key)
        y = functional.scaled_dot_product_attention(query, key, value)  # B H T E
        gates = self.to_gates(x).sigmoid().transpose(1, 2)[..., None]  # B H T 1
        out: Tensor = self.to_out(merge_heads(y * gates))
        return out


class FeedForward(nn.Module):
    """A norm, and a hidden layer of FEED_FORWARD times the width, with GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = FEED_FORWARD * dim
        self.net = nn.Sequential(
            RMSNorm(dim), nn.Linear(dim, wide), nn.GELU(), nn.Dropout(0.0), nn.Linear(wide, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; the caller adds the input."""
        out: Tensor = self.net(x)
        return out


class TransformerLayer(nn.ModuleList):
    """Attention, then feed-forward; the input of each is added to its output."""

    def __init__(self, dim: int) -> None:
        super().__init__([GatedAttention(dim), FeedForward(dim)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        for layer in self:
            x = x + layer(x)
        return x


class HybridMixer(nn.Module):
    """The mean of minGRU and self-attention, each head normalised (Hymba, arXiv 2411.13676)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = n_heads(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.rnn = BiMinGRU(dim)
        self.rnn_out_norm = RMSNorm(dim // self.heads)
        self.attn_out_norm = RMSNorm(dim // self.heads)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; the caller adds the input."""
        query, key, value = (split_heads(part, self.heads) for part in self.to_qkv(x).chunk(3, -1))
        attended = functional.scaled_dot_product_attention(query, key, value)  # B H T E
        remembered = split_heads(self.rnn(x), self.heads)
        y = 0.5 * (self.rnn_out_norm(remembered) + self.attn_out_norm(attended))
        out: Tensor = self.to_out(merge_heads(y))
        return out


class HybridLayer(nn.ModuleList):
    """Mixer, then feed-forward, each after a norm; the input of each is added to its output."""

    def __init__(self, dim: int) -> None:
        wide = FEED_FORWARD * dim
        feed_forward = nn.Sequential(nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, dim))
        super().__init__([RMSNorm(dim), HybridMixer(dim), RMSNorm(dim), feed_forward])

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        norm, mixer, feed_norm, feed_forward = self
        x = x + mixer(norm(x))
        y: Tensor = feed_forward(feed_norm(x))
        return x + y


class NormedStack(nn.Module):
    """Layers of one kind, one after the other, and a last norm."""

    def __init__(self, layer: Callable[[int], nn.Module], dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(dim) for _ in range(layers))
        self.norm = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out
