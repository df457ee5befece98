"""What every engine is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from embedder.frontend import MEL, LogMel
from embedder.networks.backbone import Backbone


class Runtime(Protocol):
    """Runs one front end and backbone; safe to call from several threads."""

    @property
    def name(self) -> str:
        """What runs and how exactly, for logs, cache keys and benchmarks."""

    def features(self, windows: Sequence[Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Windows [n, W], ..., of one length, where the network lies -> {name: float32 [N, ...]}.

        N is the sum of all n; `features_of` says what is in a feature.
        """


@dataclass(frozen=True, slots=True)
class EngineInput:
    """What an engine runs: an eval-mode module with `features_by_name`, and where it lies."""

    frontend: LogMel
    backbone: Backbone
    device: torch.device
    windows: tuple[int, ...]  # lengths of the usual ones, for which engines may prepare
    identity: str  # the fingerprint of the file's numbers, which these may be; "" without a file

    @property
    def frames(self) -> tuple[int, ...]:
        """Of the usual windows."""
        return tuple(map(self.frontend.n_frames, self.windows))


def joined(windows: Sequence[Tensor]) -> Tensor:
    """[n, W], ... as one [N, W], which is a copy unless there is but one."""
    if len(windows) == 1:
        return windows[0]
    if windows[0].device.type != "cpu":
        return torch.cat(tuple(windows))
    # NumPy's copy takes one thread; torch would wake others for it.
    return torch.from_numpy(np.concatenate([group.numpy() for group in windows]))


def backbone_names(names: Collection[str]) -> tuple[str, ...]:
    """Those that the backbone makes, in the order in which engines give them."""
    return tuple(sorted(set(names) - {MEL}))


def features_of(
    mel: Tensor,
    names: Collection[str],
    run: Callable[[Tensor, tuple[str, ...]], Sequence[Tensor]],
) -> dict[str, Tensor]:
    """Log-mel [N, M, F] -> {name: [N, size]}: MEL is its mean, `run` gives all others in order."""
    inner = backbone_names(names)
    found = {MEL: mel.mean(-1)} if MEL in names else {}  # first, while it is in the caches
    return found | dict(zip(inner, run(mel, inner), strict=True)) if inner else found


def outputs_of(backbone: Backbone, mel: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Log-mel [N, M, F] -> what a backbone makes of it, in the order of the names."""
    found = backbone.features_by_name(mel, names)
    return tuple(found[name] for name in names)
