"""float16 on a CUDA card, replayed as CUDA graphs of fixed batch sizes.

Log-mels are computed in float32; sequence models and the heads after them stay in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from embedder.networks.backbone import Backbone
from embedder.networks.frame_mn import FrameMN
from embedder.runtime.base import EngineInput, features_of, joined, outputs_of
from embedder.runtime.folding import folded
from embedder.runtime.selections import Selections

# Batches are filled up to the next of these sizes, so that few graphs are captured.
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# The most mel frames of one replay: 64 clips of 10 s.
RUN_FRAMES: Final = 64_000
_WARM_UP: Final = 3  # runs before a capture, in which torch picks the kernels


class Shape(NamedTuple):
    """What one graph was captured for: the features, and the shape of its input."""

    names: tuple[str, ...]
    clips: int
    frames: int


class Captured(NamedTuple):
    """A graph, and the memory it reads and writes."""

    graph: torch.cuda.CUDAGraph
    mel: Tensor
    outputs: tuple[Tensor, ...]


class CUDAEngine:
    """Captures a graph for each selection of features (`Selections`) and each batch size.

    Windows of other than the usual lengths run without a graph.
    """

    def __init__(self, network: EngineInput) -> None:
        self.name = "cuda f16"
        self._frontend = network.frontend
        self._backbone = halved(network.backbone)
        self._frames = network.frames
        self._selections = Selections(network.backbone)
        self._captured: dict[Shape, Captured] = {}
        self._lock = threading.Lock()  # a graph has one input and one output

    @torch.inference_mode()
    def features(self, windows: Sequence[Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Groups [n, W] of windows on the card -> {name: float32 [N, ...]}."""
        return features_of(self._frontend(joined(windows)), names, self._run_all)

    def _run_all(self, mel: Tensor, names: tuple[str, ...]) -> list[Tensor]:
        clips = min(SIZES[-1], max(1, RUN_FRAMES // mel.shape[2]))
        with self._lock, torch.cuda.device(mel.device):
            parts = [self._run(part, names) for part in torch.split(mel.half(), clips)]
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, mel: Tensor, names: tuple[str, ...]) -> list[Tensor]:
        clips, _, frames = mel.shape
        if frames not in self._frames:
            return [output.float() for output in outputs_of(self._backbone, mel, names)]
        selection = self._selections.with_all_of(names)
        shape = Shape(selection, next(size for size in SIZES if size >= clips), frames)
        if shape not in self._captured:
            self._captured[shape] = self._capture(shape, mel)
        captured = self._captured[shape]
        captured.mel[:clips].copy_(mel)
        captured.graph.replay()
        outputs = (captured.outputs[selection.index(name)] for name in names)
        return [output[:clips].to(torch.float32, copy=True) for output in outputs]

    def _capture(self, shape: Shape, like: Tensor) -> Captured:
        mel = like.new_zeros(shape.clips, like.shape[1], shape.frames)
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                outputs_of(self._backbone, mel, shape.names)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = outputs_of(self._backbone, mel, shape.names)
        return Captured(graph, mel, outputs)


def halved(backbone: Backbone) -> Backbone:
    """A folded copy with its convolutions in float16."""
    network = folded(backbone)
    (network.model if isinstance(network, FrameMN) else network).half()
    return network
