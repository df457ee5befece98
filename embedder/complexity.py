"""What a network costs: parameters, multiply-accumulates and memory, measured on a clip of 10 s.

The module itself runs, in float32 and with random weights. torch's own counter counts the
multiply-accumulates of convolutions and matrix products, those of recurrence and attention
included. It does not count elementwise work or the log-mel. The papers count the same, with
DeepSpeed's profiler.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from embedder.frontend import LogMel
from embedder.networks import BACKBONES
from embedder.networks.dymn import DynamicBlock
from embedder.zoo import MODELS, MelConfig, ModelSpec, NetworkConfig

SECONDS: Final = 10
_OPS_PER_MAC: Final = 2  # the counter counts the multiplication and the addition


@dataclass(frozen=True, slots=True)
class Complexity:
    """What a network takes for one clip of 10 s.

    `macs` are multiply-accumulates. `peak_bytes` is the most memory that the inputs and results of
    operations take at any time, without weights and without the scratch memory of an operation.
    """

    params: int
    macs: int
    peak_bytes: int


def architectures() -> list[str]:
    """The name of one model for each architecture, in the order of the zoo.

    Networks that differ only in their number of classes are one architecture. Its name is that of
    the published model with the fewest classes, the first if there are several.
    """
    groups: dict[tuple[NetworkConfig, MelConfig], list[str]] = {}
    for name, spec in MODELS.items():
        groups.setdefault((replace(spec.network, n_classes=1), spec.mel), []).append(name)
    return [min(names, key=_rank) for names in groups.values()]


def measure(spec: ModelSpec) -> Complexity:
    """Build a model's network, run it once, and count what it takes."""
    with torch.inference_mode():
        network = BACKBONES[type(spec.network)](spec.network).eval()
        for block in network.modules():
            if isinstance(block, DynamicBlock):
                block.one_by_one = 0  # one mixed kernel for a clip, as the papers count
        noise = 0.1 * torch.randn(1, SECONDS * spec.mel.sample_rate)
        mel = LogMel(spec.mel)(noise).contiguous()
        weights = [*network.parameters(), *network.buffers()]
        with PeakMemory(weights) as memory, _counter() as counter:
            memory.see(mel)
            network(mel)
    params = sum(weight.numel() for weight in network.parameters())
    return Complexity(params, counter.get_total_flops() // _OPS_PER_MAC, memory.peak)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Measures `peak`, the most bytes that tensors hold at any time while operations run.

    The tensors in `apart`, and views of them, do not count.
    """

    def __init__(self, apart: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, int] = {}  # bytes by storage
        self._apart = {_storage_id(tensor) for tensor in apart}

    def see(self, tensor: Tensor) -> None:
        """Count a tensor from now on, until it is freed."""
        number = _storage_id(tensor)
        if number not in self._apart and number not in self._alive:
            storage = tensor.untyped_storage()
            self._alive[number] = storage.nbytes()
            self.peak = max(self.peak, sum(self._alive.values()))
            weakref.finalize(storage, self._alive.pop, number)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.see(result)
        return results


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _counter() -> FlopCounterMode:
    # torch's counter leaves out attention as CPUs compute it.
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: _attention_ops})


def _attention_ops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _rank(name: str) -> tuple[bool, int]:
    spec = MODELS[name]
    return spec.bundled, spec.network.n_classes
