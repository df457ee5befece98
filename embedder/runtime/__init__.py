"""How a network is run. One protocol, several engines, the same numbers.

auto           OpenVINO on a CPU where it is installed, else torch
eager          the torch module itself, as training has it
torch          float32 anywhere; BatchNorm folded, channels last
openvino       float32 on a CPU; compiled from the torch module, kept on disk between processes
openvino-bf16  the same in bfloat16, where the CPU has it: faster, and less exact
cuda           float16 on a card, replayed as CUDA graphs
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from embedder.errors import BadRequest
from embedder.frontend import MEL, LogMel

log = logging.getLogger(__name__)

CHOICES: Final = ("auto", "eager", "torch", "openvino", "openvino-bf16", "cuda")


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
class Network:
    """What an engine runs: an eval-mode module with `features_by_name`, and where it lies."""

    frontend: LogMel
    backbone: Any
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


def outputs_of(backbone: Any, mel: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Log-mel [N, M, F] -> what a backbone makes of it, in the order of the names."""
    found = backbone.features_by_name(mel, names)
    return tuple(found[name] for name in names)


def choose(choice: str, device: torch.device) -> str:
    """The engine that "auto" stands for here; BadRequest for one that cannot run here."""
    if choice not in CHOICES:
        raise BadRequest(f"no runtime {choice!r}; choose one of {', '.join(CHOICES)}")
    if choice == "auto":
        return _best(device)
    place = _PLACES.get(choice, device.type)
    if place != device.type:
        raise BadRequest(
            f"runtime {choice!r} runs on {place}, not on {device.type}; choose runtime 'auto'"
        )
    if choice.startswith("openvino") and not _has_openvino():
        raise BadRequest(f"runtime {choice!r} is not installed; pip install openvino")
    return choice


def create(choice: str, network: Network) -> Runtime:
    """One of CHOICES for one network."""
    return _ENGINES[choose(choice, network.device)](network)


def _best(device: torch.device) -> str:
    if device.type != "cpu":
        return "torch"
    if not _has_openvino():
        log.warning("OpenVINO is not installed: networks run on torch, up to twice as slow")
        return "torch"
    return "openvino"


def _has_openvino() -> bool:
    return find_spec("openvino") is not None


def _eager(network: Network) -> Runtime:
    from embedder.runtime.torch_engine import EagerRuntime

    return EagerRuntime(network)


def _torch(network: Network) -> Runtime:
    from embedder.runtime.torch_engine import TorchRuntime

    return TorchRuntime(network)


def _openvino(network: Network, precision: str = "f32") -> Runtime:
    from embedder.runtime.openvino_engine import OpenVINORuntime

    return OpenVINORuntime(network, precision)


def _cuda(network: Network) -> Runtime:
    from embedder.runtime.cuda_engine import CUDARuntime

    return CUDARuntime(network)


_PLACES: Final = {"openvino": "cpu", "openvino-bf16": "cpu", "cuda": "cuda"}
_ENGINES: Final[dict[str, Callable[[Network], Runtime]]] = {
    "eager": _eager,
    "torch": _torch,
    "openvino": _openvino,
    "openvino-bf16": partial(_openvino, precision="bf16"),
    "cuda": _cuda,
}
