"""Whether a network has changed, and a fingerprint of all that decides its numbers."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any, Final

import torch
from blake3 import blake3
from torch import nn

from embedder.networks import Backbone

_version_of: Final = attrgetter("_version")
_values: Final = methodcaller("values")
_END: Final = object()
# Attributes of a module, beside its tensors, that decide what it computes.
_PLAIN: Final = (bool, int, float, str, tuple, type(None))
# Attributes that do not decide what a module computes.
_IGNORED: Final = frozenset({"training", "tap_sizes"})


class ChangeWatch:
    """Tells before every run whether a network is as it was when the watch began.

    It notices tensors that were written to, moved or replaced, and modules that were replaced or
    given hooks. It does not notice writes through `Tensor.data`, as torch itself does not, nor
    changed numbers that are no tensors.
    """

    def __init__(self, network: Backbone) -> None:
        modules = list(network.modules())
        inside = [part for m in modules for part in (m._parameters, m._buffers, m._modules)]
        self._inside = [part for part in inside if part]
        self._hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._held = [*chain.from_iterable(part.values() for part in self._inside), _END]
        tensors = list(chain(network.parameters(), network.buffers()))
        # Inference tensors have no version counter.
        self._tensors = [tensor for tensor in tensors if not tensor.is_inference()]
        self._versions = sum(map(_version_of, self._tensors))
        self._first = tensors[0]
        self._kind = (tensors[0].device, tensors[0].dtype)
        self.device = tensors[0].device
        self.hooked = any(self._hooks)

    def unchanged(self) -> bool:
        """Whether all is as it was; for mn10, telling takes some 0.03 ms."""
        now = chain(chain.from_iterable(map(_values, self._inside)), (_END,))
        return (
            all(map(is_, now, self._held))
            and sum(map(_version_of, self._tensors)) == self._versions
            and any(self._hooks) == self.hooked
            and (self._first.device, self._first.dtype) == self._kind
        )


def fingerprint(network: Backbone) -> str:
    """A hash of every number of a network; "" if hooks or a replaced `forward` may change results.

    Equal weights have equal fingerprints, wherever they came from.
    """
    digest = blake3()
    for path, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return ""
        digest.update(f"{path} {type(module).__qualname__} {_plain(module)}\n".encode())
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def _plain(module: nn.Module) -> list[tuple[str, Any]]:
    return sorted(
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and name not in _IGNORED
    )
