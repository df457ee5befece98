"""torch runs the module itself, or a copy with BatchNorm folded and channels last."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from embedder.runtime.base import EngineInput, features_of, joined, outputs_of
from embedder.runtime.folding import folded


class EagerEngine:
    """The module itself, as training has it; a change of it shows at once."""

    def __init__(self, network: EngineInput) -> None:
        self.name = f"eager {network.device.type} f32"
        self._frontend = network.frontend
        self._backbone = network.backbone

    @torch.inference_mode()
    def features(self, windows: Sequence[Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Groups [n, W] of windows of one length -> {name: float32 [N, ...]}."""
        return features_of(
            self._frontend(joined(windows)), names, partial(outputs_of, self._backbone)
        )


class TorchEngine(EagerEngine):
    """A folded copy of the backbone, on the backbone's device."""

    def __init__(self, network: EngineInput) -> None:
        super().__init__(network)
        self.name = f"torch {network.device.type} f32"
        self._backbone = folded(network.backbone)
