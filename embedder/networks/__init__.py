"""The networks: log-mel in, features by name out. A table of contents.

mn          MobileNetV3-Large of any width (arXiv 2303.01879), out of `blocks` and `heads`
dymn        its dynamic variant (arXiv 2310.15648), out of `dynamic` and `context`
frame_mn    the frame-wise MN (arXiv 2503.11373), with one of the models of `sequence`:
            `attention`, `recurrence`, `mamba` and what stands in that file
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from types import MappingProxyType
from typing import Any, Final, Protocol

from torch import Tensor, nn

from embedder.networks.dymn import DyMN
from embedder.networks.frame_mn import FrameMN
from embedder.networks.mn import MN
from embedder.zoo import DyMNConfig, FrameMNConfig, MNConfig


class Backbone(Protocol):
    """What all networks have in common; each is a `torch.nn.Module` as well.

    Axes: B clips, M mel bands, F mel frames, C channels, f frequency, t time, N classes.
    """

    tap_sizes: dict[str, int]
    """Tap -> number of values; see `features_by_name` of each network for what its taps mean."""

    def __call__(self, mel: Tensor) -> Tensor:
        """Normalised log-mel [B, M, F] -> the clip's logits [B, N]."""

    def features_by_name(self, mel: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """[B, M, F] -> {tap: [B, size]}, computed no deeper than the taps need."""

    def feature_maps(self, mel: Tensor) -> list[Tensor]:
        """[B, M, F] -> the outputs of the seventeen stages, each [B, C, f, t]."""

    def modules(self) -> Iterator[nn.Module]:
        """As of `torch.nn.Module`."""


BACKBONES: Final = MappingProxyType[type, Callable[[Any], Any]](
    {MNConfig: MN, DyMNConfig: DyMN, FrameMNConfig: FrameMN}
)
"""Configuration -> the network that it builds."""

__all__ = ["BACKBONES", "MN", "Backbone", "DyMN", "FrameMN"]
