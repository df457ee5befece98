"""The networks: log-mel in, features by name out. A table of contents.

mn          MobileNetV3-Large of any width (arXiv 2303.01879), built from `blocks` and `heads`
dymn        its dynamic variant (arXiv 2310.15648), built from `dynamic` and `context`
frame_mn    the frame-wise MN (arXiv 2503.11373), with one of the models of `sequence`, which
            is built from `attention`, `recurrence` and `mamba`
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from torch import Tensor, nn

from embedder.networks.dymn import DyMN
from embedder.networks.frame_mn import FrameMN
from embedder.networks.mn import MN
from embedder.zoo import DyMNConfig, FrameMNConfig, MNConfig


class Backbone(Protocol):
    """What all networks have in common; each of them is also a `torch.nn.Module`.

    Axes: B clips, M mel bands, F mel frames, C channels, f frequency, t time, N classes.
    """

    tap_sizes: dict[str, int]
    """Tap -> number of values; `features_by_name` of each network says what its taps mean."""

    def __call__(self, mel: Tensor) -> Tensor:
        """Normalised log-mel [B, M, F] -> the clip's logits [B, N]."""

    def features_by_name(self, mel: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """[B, M, F] -> {tap: float32 [B, size]}; stages that no tap needs are not run."""

    def feature_maps(self, mel: Tensor) -> list[Tensor]:
        """[B, M, F] -> the outputs of the seventeen stages, each [B, C, f, t]."""

    # What engines use of `torch.nn.Module`.
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...
    def eval(self) -> Self: ...
    def half(self) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


BACKBONES: Final = MappingProxyType[type, Callable[[Any], MN | DyMN | FrameMN]](
    {MNConfig: MN, DyMNConfig: DyMN, FrameMNConfig: FrameMN}
)
"""The type of a configuration -> the network that it builds."""

__all__ = ["BACKBONES", "MN", "Backbone", "DyMN", "FrameMN"]
