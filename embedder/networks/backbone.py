"""What all networks have in common.

Axes: B clips, M mel bands, F mel frames, C channels, f frequency, t time, N classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection

from torch import Tensor, nn


class Backbone(nn.Module):
    """A network: normalised log-mel [B, M, F] in, the clip's logits [B, N] or features out."""

    tap_sizes: dict[str, int]
    """Tap -> number of values; see `features_by_name` of each network for what its taps mean."""

    @abstractmethod
    def features_by_name(self, mel: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """[B, M, F] -> {tap: [B, size]}, computed no deeper than the taps need."""

    @abstractmethod
    def feature_maps(self, mel: Tensor) -> list[Tensor]:
        """[B, M, F] -> the outputs of the seventeen stages, each [B, C, f, t]."""
