"""What every engine is given and what it gives back.

Axes: n windows of one group, N windows of all groups, W samples a window, M mel bands,
F mel frames.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from embedder.frontend import MEL, LogMel
from embedder.networks.backbone import Backbone


class Engine(Protocol):
    """Runs one front end and one backbone; several threads may call it at the same time."""

    @property
    def name(self) -> str:
        """What runs and how exactly, for logs, cache keys and benchmarks."""

    def features(self, windows: Sequence[Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Groups of windows [n, W], of one W, on the network's device -> {name: float32 [N, ...]}.

        N is the sum of all n. A name is MEL or one that the backbone's `features_by_name` takes.
        """


@dataclass(frozen=True, slots=True)
class EngineInput:
    """The network that an engine runs, in eval mode, and what the engine may know of its use."""

    frontend: LogMel
    backbone: Backbone
    device: torch.device
    windows: tuple[int, ...]  # the usual lengths in samples, for which an engine may prepare
    identity: str  # fingerprint of the numbers that a file held; "" for random weights

    @property
    def frames(self) -> tuple[int, ...]:
        """How many mel frames the usual windows have."""
        return tuple(map(self.frontend.n_frames, self.windows))


def joined(windows: Sequence[Tensor]) -> Tensor:
    """Groups [n, W] as one tensor [N, W]; a copy, unless there is only one group."""
    if len(windows) == 1:
        return windows[0]
    if windows[0].device.type != "cpu":
        return torch.cat(tuple(windows))
    # NumPy's copy takes one thread; torch would wake others for it.
    return torch.from_numpy(np.concatenate([group.numpy() for group in windows]))


def backbone_names(names: Collection[str]) -> tuple[str, ...]:
    """The names of features that the backbone computes, sorted, as engines order them."""
    return tuple(sorted(set(names) - {MEL}))


def features_of(
    mel: Tensor,
    names: Collection[str],
    run: Callable[[Tensor, tuple[str, ...]], Sequence[Tensor]],
) -> dict[str, Tensor]:
    """Log-mel [N, M, F] -> {name: [N, ...]}; MEL is its mean over time, `run` gives all others."""
    inner = backbone_names(names)
    # The mean comes first, while the log-mel is in the caches.
    features = {MEL: mel.mean(-1)} if MEL in names else {}
    return features | dict(zip(inner, run(mel, inner), strict=True)) if inner else features


def outputs_of(backbone: Backbone, mel: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Log-mel [N, M, F] -> the backbone's features, in the order of the names."""
    features = backbone.features_by_name(mel, names)
    return tuple(features[name] for name in names)
