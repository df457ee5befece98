"""The networks: log-mel in, features by name out. A table of contents.

backbone    what all networks have in common
mn          MobileNetV3-Large of any width (arXiv 2303.01879), built from `blocks` and `heads`
dymn        its dynamic variant (arXiv 2310.15648), built from `dynamic` and `context`
frame_mn    the frame-wise MN (arXiv 2503.11373), with one of the models of `sequence`, which
            is built from `attention`, `recurrence` and `mamba`
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

from embedder.networks.backbone import Backbone
from embedder.networks.dymn import DyMN
from embedder.networks.frame_mn import FrameMN
from embedder.networks.mn import MN
from embedder.zoo import DyMNConfig, FrameMNConfig, MNConfig

BACKBONES: Final = MappingProxyType[type, Callable[[Any], Backbone]](
    {MNConfig: MN, DyMNConfig: DyMN, FrameMNConfig: FrameMN}
)
"""The type of a configuration -> the network that it builds."""

__all__ = ["BACKBONES", "MN", "Backbone", "DyMN", "FrameMN"]
