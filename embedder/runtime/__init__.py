"""How a network is run: one protocol, several engines, the same numbers.

auto           OpenVINO on a CPU where it is installed, else torch
eager          the torch module itself, as training has it
torch          float32 on any device; BatchNorm folded, channels last
openvino       float32 on a CPU; compiled from the torch module, stored on disk for later processes
openvino-bf16  the same in bfloat16, if the CPU has it: faster, and less exact
cuda           float16 on a card, replayed as CUDA graphs
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Final

import torch

from embedder.errors import BadRequest
from embedder.runtime.base import Engine, EngineInput

log = logging.getLogger(__name__)

CHOICES: Final = ("auto", "eager", "torch", "openvino", "openvino-bf16", "cuda")


def choose(choice: str, device: torch.device) -> str:
    """The engine that a choice means on this device; "auto" is the fastest.

    Raises
    ------
    BadRequest : there is no such engine, or it cannot run on this device or is not installed.
    """
    if choice not in CHOICES:
        raise BadRequest(f"no runtime {choice!r}; choose one of {', '.join(CHOICES)}")
    if choice == "auto":
        return _best(device)
    needed = _DEVICES.get(choice, device.type)
    if needed != device.type:
        raise BadRequest(
            f"runtime {choice!r} runs on {needed}, not on {device.type}; choose runtime 'auto'"
        )
    if choice.startswith("openvino") and not _has_openvino():
        raise BadRequest(f"runtime {choice!r} is not installed; pip install openvino")
    return choice


def create(choice: str, network: EngineInput) -> Engine:
    """The engine that one of CHOICES means for this network."""
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


def _eager(network: EngineInput) -> Engine:
    from embedder.runtime.torch_engine import EagerEngine

    return EagerEngine(network)


def _torch(network: EngineInput) -> Engine:
    from embedder.runtime.torch_engine import TorchEngine

    return TorchEngine(network)


def _openvino(network: EngineInput, precision: str = "f32") -> Engine:
    from embedder.runtime.openvino_engine import OpenVINOEngine

    return OpenVINOEngine(network, precision)


def _cuda(network: EngineInput) -> Engine:
    from embedder.runtime.cuda_engine import CUDAEngine

    return CUDAEngine(network)


# The type of device that an engine needs; the others run on any.
_DEVICES: Final = {"openvino": "cpu", "openvino-bf16": "cpu", "cuda": "cuda"}
_ENGINES: Final[dict[str, Callable[[EngineInput], Engine]]] = {
    "eager": _eager,
    "torch": _torch,
    "openvino": _openvino,
    "openvino-bf16": partial(_openvino, precision="bf16"),
    "cuda": _cuda,
}
