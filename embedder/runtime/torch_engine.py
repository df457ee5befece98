"""torch: the module itself, or a copy with BatchNorm folded and channels last."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from embedder.runtime import Network
from embedder.runtime.folding import folded


class EagerRuntime:
    """The module itself, as training has it: whatever is changed in it shows at once."""

    def __init__(self, network: Network) -> None:
        self.name = f"eager {network.device.type} f32"
        self._backbone = network.backbone

    @torch.inference_mode()
    def features(self, mel: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Normalised log-mel [N, M, F] -> {name: float32}."""
        found: dict[str, Tensor] = self._backbone.features_by_name(mel, names)
        return found


class TorchRuntime(EagerRuntime):
    """A folded copy of the backbone, on the backbone's device."""

    def __init__(self, network: Network) -> None:
        self.name = f"torch {network.device.type} f32"
        self._backbone = folded(network.backbone)
