"""Converts a torch network in memory to a graph of OpenVINO.

Axes: N clips, M mel bands, F mel frames, C channels, f frequency, t time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.networks import Backbone
from embedder.runtime.base import EngineInput, outputs_of
from embedder.runtime.folding import folded
from embedder.runtime.forks import ProcessLock
from embedder.runtime.openvino_library import (
    FrontEndManager,
    TorchScriptPythonDecoder,
    openvino,
    opset13,
)
from embedder.runtime.tracing import traced

ANY: Final = -1
# Kernels for single clips of the usual length, by type of layer: convolutions of maps in blocks of
# 16 channels. OpenVINO's own choice, maps with all channels together, takes 2 to 10 % longer. In
# other graphs OpenVINO may not be able to use these, and then chooses far slower ones.
KERNELS: Final = {
    "Convolution": "cpu:jit_avx512_1x1,cpu:jit_avx512",
    "GroupConvolution": "cpu:jit_avx512_dw",
}
# A map with this many frequencies or more is large: of 128 mel bands, those of four stages.
LARGE: Final = 32
_converting: Final = ProcessLock()


class GraphShape(NamedTuple):
    """What is compiled: the names of its features, and the shape of its input where it is fixed."""

    names: tuple[str, ...]
    clips: int = ANY
    frames: int = ANY

    @property
    def kernels(self) -> Mapping[str, str]:
        """The kernels to ask for, by type of layer; empty where the choice is OpenVINO's."""
        return KERNELS if self.clips == 1 and self.frames != ANY else {}


def convert(network: EngineInput, graph: GraphShape) -> Any:
    """An OpenVINO model of the named features: [N, M, F] -> one output for each name.

    A process converts one network at a time: OpenVINO's reader of torch's graphs has variables
    that all threads share, and reports "duplicated producers" when two threads read.
    """
    with _converting:
        return _converted(network, graph)


def _converted(network: EngineInput, graph: GraphShape) -> Any:
    clips = 2 if graph.clips == ANY else graph.clips
    frames = min(network.frames) if graph.frames == ANY else graph.frames
    bands = network.frontend.config.n_mels
    example = torch.zeros(clips, bands, frames)
    backbone = folded(network.backbone)
    if graph.clips == 1:
        _vectors_as_maps(backbone)

    def selected(mel: Tensor) -> tuple[Tensor, ...]:
        """Tracing a function, not the module, makes the weights constants: twice as fast."""
        return outputs_of(backbone, mel, graph.names)

    with torch.inference_mode(False), torch.no_grad():
        decoder = TorchScriptPythonDecoder(traced(selected, example), example_input=(example,))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    _average_in_steps(model)
    shape = [graph.clips, bands, graph.frames]
    model.reshape({model.inputs[0]: openvino.PartialShape(shape)})
    return model


def _average_in_steps(model: Any) -> None:
    """Split each mean of a large map into a mean over time and a mean over frequency.

    OpenVINO adds up the values of a mean one after the other in float32. In one step, the means of
    the largest maps are off by 3e-4 of their size. For small maps, two steps would only take
    longer.
    """
    for mean in model.get_ops():
        if mean.get_type_name() != "ReduceMean" or not _is_over_large_maps(mean):
            continue
        over_time = opset13.reduce_mean(mean.input_value(0), opset13.constant([3]), keep_dims=True)
        # With keep_dims=True in both, OpenVINO would join the two steps again.
        both = opset13.reduce_mean(over_time, opset13.constant([2]), keep_dims=False)  # N C 1
        shaped = opset13.unsqueeze if mean.get_keep_dims() else opset13.squeeze
        mean.output(0).replace(shaped(both, opset13.constant([2])).output(0))


def _is_over_large_maps(mean: Any) -> bool:
    """Whether a mean takes [N, C, f, t] to [N, C] or [N, C, 1, 1], with a large f."""
    axes, shape = mean.input_value(1).get_node(), mean.input(0).get_partial_shape()
    if axes.get_type_name() != "Constant" or shape.rank.is_dynamic or len(shape) != 4:
        return False
    over = sorted(axis % 4 for axis in axes.get_data().flatten().tolist())
    return over == [2, 3] and shape[2].is_static and shape[2].get_length() >= LARGE


def _vectors_as_maps(backbone: Backbone) -> None:
    """Have linear layers treat a vector as a map of one point: OpenVINO is a third faster then."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            kernel = module.weight[..., None, None]
            module.forward = partial(_linear, module, kernel)  # type: ignore[method-assign]


def _linear(layer: nn.Linear, kernel: Tensor, x: Tensor) -> Tensor:
    if x.ndim != 2:
        return functional.linear(x, layer.weight, layer.bias)
    return functional.conv2d(x[..., None, None], kernel, layer.bias).flatten(1)
