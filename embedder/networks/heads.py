"""Heads: the last feature map -> class logits.

Axes: B batch, C channels, f frequency, t time, H attention heads, N classes.
Attribute names and Sequential indices are the published file format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from embedder.networks.blocks import batch_norm
from embedder.zoo import Head


class MLPHead(nn.Sequential):
    """Average pool, hidden layer, linear classifier: [B, C, f, t] -> logits [B, N]."""

    def __init__(self, channels: int, hidden: int, n_classes: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, hidden),
            nn.Hardswish(),
            nn.Dropout(0.2),
            nn.Linear(hidden, n_classes),
        )

    def hidden(self, features: Tensor) -> Tensor:
        """[B, C, f, t] -> the hidden layer after its activation (tap "clf2") [B, hidden]."""
        for layer in list(self)[:4]:
            features = layer(features)
        return features

    def from_hidden(self, hidden: Tensor) -> Tensor:
        """[B, hidden] -> logits [B, N]: `forward(x) == from_hidden(hidden(x))`."""
        for layer in list(self)[4:]:
            hidden = layer(hidden)
        return hidden


class FullyConvolutionalHead(nn.Sequential):
    """A classifier at every position, averaged over positions: [B, C, f, t] -> logits [B, N]."""

    def __init__(self, channels: int, hidden: int, n_classes: int) -> None:  # noqa: ARG002
        super().__init__(
            nn.Conv2d(channels, n_classes, 1, bias=False),
            batch_norm(n_classes, eps=1e-5, momentum=0.01),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


class AttentionPoolingHead(nn.Module):
    """Attention pooling over time (PSLA, arXiv 2102.01243), here with several weighted heads."""

    N_HEADS: Final = 4
    EPSILON: Final = 1e-7

    def __init__(self, channels: int, hidden: int, n_classes: int) -> None:  # noqa: ARG002
        super().__init__()
        self.n_classes = n_classes
        self.subspace_proj = nn.Linear(channels, 2 * self.N_HEADS * n_classes)
        self.head_weight = nn.Parameter(torch.full((1, self.N_HEADS, 1), 1 / self.N_HEADS))

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, f, t] -> logits [B, N]."""
        steps = features.mean(2).transpose(1, 2)  # B t C
        projected = self.subspace_proj(steps)
        projected = projected.unflatten(-1, (2, self.N_HEADS, self.n_classes))  # B t 2 H N
        attention, values = projected.unbind(2)  # B t H N, each
        attention = attention.sigmoid().clamp(self.EPSILON, 1 - self.EPSILON)
        attention = attention / attention.sum(1, keepdim=True)
        pooled: Tensor = (attention * values).sum(1)  # B H N
        return (pooled * self.head_weight).sum(1)


HEADS: Final[dict[Head, Callable[[int, int, int], nn.Module]]] = {
    "mlp": MLPHead,
    "fully_convolutional": FullyConvolutionalHead,
    "multihead_attention_pooling": AttentionPoolingHead,
}
