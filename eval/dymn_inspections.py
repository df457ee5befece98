"""What DyMN's dynamic components do: the paper's inspections (arXiv 2310.15648, section VII).

Axes: B batch, C channels, K kernels, M lines, f frequency, t time, P points.

    with inspected(network, "conv/uniform"):
        logits = network(mel)

An inspection acts on every dynamic block of the network that it is given. A copy of that
network, such as a compiled one, knows nothing of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from embedder.networks.context import Context, ContextGenerator
from embedder.networks.dymn import DyMN, DynamicBlock
from embedder.networks.dynamic import DynamicReLU, KernelAttention

# Block number, from 1 -> inputs and outputs of its dynamic ReLU [2, P].
Points = dict[int, Tensor]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What becomes of the values that one method of one kind of module returns."""

    kind: type[nn.Module]
    method: str
    alter: Callable[[Any, torch.Generator], Any]


def _next_clip(x: Tensor, _: torch.Generator | None = None) -> Tensor:
    """Each clip gets what belongs to the next one: the same one in all of the network."""
    if len(x) < 2:
        raise BadRequest("a context shuffle needs a batch of two clips or more")
    return x.roll(-1, 0)


def _shuffled(x: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """An axis in random order, another order for each clip."""
    order = torch.rand(len(x), x.shape[axis], generator=generator).argsort(1)
    shape = [len(x), *(1 for _ in x.shape[1:])]
    shape[axis] = x.shape[axis]
    return x.take_along_dim(order.view(shape).to(x.device), axis)


def _next_gates(context: Context, _: torch.Generator) -> Context:
    gate_f, gate_t = _next_clip(context.gate_f), _next_clip(context.gate_t)
    return context._replace(gate_f=gate_f, gate_t=gate_t)


def _shuffle_gates(context: Context, generator: torch.Generator, *, axes: str) -> Context:
    """Gates are [B, C, f, 1] and [B, C, 1, t]; both share an order of channels."""
    gate_f, gate_t = context.gate_f, context.gate_t
    if "c" in axes:
        both = torch.cat([gate_f, gate_t.transpose(2, 3)], 2)
        both = _shuffled(both, 1, generator)
        gate_f, gate_t = both[:, :, : gate_f.shape[2]], both[:, :, gate_f.shape[2] :]
        gate_t = gate_t.transpose(2, 3)
    if "f" in axes:
        gate_f = _shuffled(gate_f, 2, generator)
    if "t" in axes:
        gate_t = _shuffled(gate_t, 3, generator)
    return context._replace(gate_f=gate_f, gate_t=gate_t)


def _shuffle_kernels(attention: Tensor, generator: torch.Generator) -> Tensor:
    return _shuffled(attention, 1, generator)


def _all_kernels_alike(attention: Tensor, _: torch.Generator) -> Tensor:
    return torch.full_like(attention, 1 / attention.shape[1])


def _best_kernel_only(attention: Tensor, _: torch.Generator) -> Tensor:
    best = attention.argmax(1, keepdim=True)
    return torch.zeros_like(attention).scatter_(1, best, 1.0)


def _shuffle_lines(lines: Tensor, generator: torch.Generator) -> Tensor:
    return _shuffled(lines, 2, generator)  # B 2M C: a channel's coefficients stay together


_ca: Final = partial(Inspection, ContextGenerator, "forward")
_conv: Final = partial(Inspection, KernelAttention, "forward")
_relu: Final = partial(Inspection, DynamicReLU, "dynamics")

# Table XII, row by row.
INSPECTIONS: Final[Mapping[str, Inspection]] = MappingProxyType(
    {
        "ca/context": _ca(_next_gates),
        "ca/channel": _ca(partial(_shuffle_gates, axes="c")),
        "ca/spatial": _ca(partial(_shuffle_gates, axes="ft")),
        "ca/time": _ca(partial(_shuffle_gates, axes="t")),
        "ca/frequency": _ca(partial(_shuffle_gates, axes="f")),
        "conv/context": _conv(_next_clip),
        "conv/attention": _conv(_shuffle_kernels),
        "conv/uniform": _conv(_all_kernels_alike),
        "conv/max": _conv(_best_kernel_only),
        "relu/context": _relu(_next_clip),
        "relu/channel": _relu(_shuffle_lines),
    }
)


@contextmanager
def inspected(network: nn.Module, name: str, seed: int = 0) -> Iterator[None]:
    """Inside, every dynamic component of one kind is disturbed in one way.

    Parameters
    ----------
    network : a DyMN, or a module that holds one; an AudioEmbedder runs eagerly meanwhile,
        because other engines run copies.
    name : one of INSPECTIONS. "context" inspections need two clips or more in a batch.
    seed : of the random orders.

    Raises
    ------
    BadRequest : no such inspection, or nothing in the network to inspect.
    """
    if name not in INSPECTIONS:
        raise BadRequest(f"no inspection {name!r}; choose one of {', '.join(INSPECTIONS)}")
    inspection = INSPECTIONS[name]
    parts = [part for part in network.modules() if isinstance(part, inspection.kind)]
    if not parts:
        raise BadRequest(f"{type(network).__name__} has nothing that {name!r} could inspect")
    generator = torch.Generator().manual_seed(seed)
    runtime = network.runtime if isinstance(network, AudioEmbedder) else ""
    for part in parts:
        setattr(part, inspection.method, _altered(part, inspection, generator))
    try:
        if isinstance(network, AudioEmbedder):
            network.use("eager")
        yield
    finally:
        for part in parts:
            delattr(part, inspection.method)
        if isinstance(network, AudioEmbedder):
            network.use(runtime)


def _altered(
    part: nn.Module, inspection: Inspection, generator: torch.Generator
) -> Callable[..., Any]:
    original = getattr(part, inspection.method)
    return lambda *args: inspection.alter(original(*args), generator)


@torch.inference_mode()
def inspect_all(
    network: nn.Module, mel: Tensor, score: Callable[[Tensor], float], seed: int = 0
) -> dict[str, float]:
    """Table XII: the score of a batch's logits, undisturbed ("reference") and inspected.

    `mel` [B, M, F] with B of two or more; `score` of logits [B, N]. Inspections of components
    that the network lacks are left out.
    """
    table = {"reference": score(network(mel))}
    for name, inspection in INSPECTIONS.items():
        if any(isinstance(part, inspection.kind) for part in network.modules()):
            with inspected(network, name, seed):
                table[name] = score(network(mel))
    return table


@torch.inference_mode()
def relu_points(network: DyMN, mel: Tensor, points: int = 10_000, seed: int = 0) -> Points:
    """Fig. 6: what each dynamic ReLU makes of values chosen at random from a batch.

    [B, M, F] -> {block number, from 1: [2, P]}, inputs and outputs, P about `points`.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[int, list[Tensor]] = {}

    def watcher(number: int) -> Callable[[nn.Module, tuple[Tensor, Tensor], Tensor], None]:
        def watch(_: nn.Module, inputs: tuple[Tensor, Tensor], outputs: Tensor) -> None:
            share = max(1, points * len(outputs) // len(mel))
            chosen = torch.randint(outputs.numel(), (share,), generator=generator)
            pair = [x.flatten()[chosen.to(x.device)] for x in (inputs[0], outputs)]
            found.setdefault(number, []).append(torch.stack(pair))

        return watch

    with ExitStack() as hooks:
        for number, block in enumerate(network.layers, 1):
            if isinstance(block, DynamicBlock) and isinstance(block.depth_act, DynamicReLU):
                hooks.enter_context(block.depth_act.register_forward_hook(watcher(number)))
        network(mel)
    return {number: torch.cat(pairs, 1) for number, pairs in found.items()}


def plot_relu(points: Points, blocks: Sequence[int] = (1, 3, 8, 13, 15)) -> Any:
    """Fig. 6 as a matplotlib Figure: outputs over inputs, dashed the conventional ReLU."""
    try:
        figure = importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise BadRequest("plots need matplotlib; install it with pip") from error
    shown = [number for number in blocks if number in points]
    if not shown:
        raise BadRequest(f"no dynamic ReLU in blocks {blocks}; choose from {sorted(points)}")
    plot = figure(figsize=(3 * len(shown), 3), layout="constrained")
    for axes, number in zip(plot.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        inputs, outputs = points[number].cpu().numpy()
        ends = torch.linspace(float(inputs.min()), float(inputs.max()), 101)
        axes.scatter(inputs, outputs, s=1, alpha=0.3, linewidths=0)
        axes.plot(ends, ends.clamp(min=0), "r--", linewidth=1)
        axes.set(title=f"Block {number}", xlabel="input")
    return plot
