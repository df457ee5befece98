"""A torch network as a graph of OpenVINO's, converted in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

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
# For single clips of the usual length: convolutions of maps in blocks of 16 channels. OpenVINO's
# own choice, maps with all channels together, takes 2 to 10 % longer. For other graphs it falls
# back on far slower ones if it cannot follow the wish.
KERNELS: Final = {
    "Convolution": "cpu:jit_avx512_1x1,cpu:jit_avx512",
    "GroupConvolution": "cpu:jit_avx512_dw",
}
# Lines from which on a map counts as large: those of the first four stages, of 128 mel bands.
LARGE: Final = 32
_converting: Final = ProcessLock()


class GraphShape(NamedTuple):
    """What is compiled: features, and the shape of their input where it is fixed."""

    names: tuple[str, ...]
    clips: int = ANY
    frames: int = ANY

    @property
    def kernels(self) -> Mapping[str, str]:
        """Asked for by type of layer; none where the choice is OpenVINO's."""
        return KERNELS if self.clips == 1 and self.frames != ANY else {}


def convert(network: EngineInput, graph: GraphShape) -> Any:
    """An OpenVINO model of the named features: [N, M, F] -> one output a name.

    One at a time in a process: OpenVINO's reader of torch's graphs has variables that its threads
    share, and finds "duplicated producers" where two read at once.
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
        """Of a function weights are traced as constants, twice as fast as a module's."""
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
    """Have large maps averaged over time, and these means over frequency.

    OpenVINO adds up the values of a mean one after the other in float32. Taken at once, those of
    the largest maps are off by 3e-4 of their size; of small maps, steps would only take longer.
    """
    for mean in model.get_ops():
        if mean.get_type_name() != "ReduceMean" or not _is_over_large_maps(mean):
            continue
        over_time = opset13.reduce_mean(mean.input_value(0), opset13.constant([3]), keep_dims=True)
        # One that keeps its dimensions as the first one does would be joined with it again.
        both = opset13.reduce_mean(over_time, opset13.constant([2]), keep_dims=False)  # N C 1
        shaped = opset13.unsqueeze if mean.get_keep_dims() else opset13.squeeze
        mean.output(0).replace(shaped(both, opset13.constant([2])).output(0))


def _is_over_large_maps(mean: Any) -> bool:
    """Whether it takes [N, C, f, t] -> [N, C] or [N, C, 1, 1], of many lines f."""
    axes, shape = mean.input_value(1).get_node(), mean.input(0).get_partial_shape()
    if axes.get_type_name() != "Constant" or shape.rank.is_dynamic or len(shape) != 4:
        return False
    over = sorted(axis % 4 for axis in axes.get_data().flatten().tolist())
    return over == [2, 3] and shape[2].is_static and shape[2].get_length() >= LARGE


def _vectors_as_maps(backbone: nn.Module) -> None:
    """Have linear layers take a vector as a map of one point: OpenVINO is a third faster so."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            kernel = module.weight[..., None, None]
            module.forward = partial(_linear, module, kernel)  # type: ignore[method-assign]


def _linear(layer: nn.Linear, kernel: Tensor, x: Tensor) -> Tensor:
    if x.ndim != 2:
        return functional.linear(x, layer.weight, layer.bias)
    return functional.conv2d(x[..., None, None], kernel, layer.bias).flatten(1)
