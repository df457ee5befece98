"""OpenVINO on the CPU: compiled from the torch module in memory, kept on disk by its weights.

No usage statistics leave: OpenVINO's reporter is kept from being imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
import tempfile
import threading
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedder import __version__
from embedder.allocator import keep_freed_memory
from embedder.checkpoints import cache_dir
from embedder.dymn import DyMN
from embedder.runtime import Network
from embedder.runtime.folding import folded
from embedder.threads import threads

# What is None here counts as not installed. It would report to Intel, and write into the home.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402

log = logging.getLogger(__name__)

# Frames that one run takes: the maps of more do not stay in the caches.
RUN_FRAMES: Final = 1024
# A dynamic network's windows run together from so many on, and else one by one.
MANY: Final = 16
ANY: Final = -1


class Graph(NamedTuple):
    """What is compiled: features, and the shape of their input where it is fixed."""

    names: tuple[str, ...]
    clips: int = ANY
    frames: int = ANY


class OpenVINORuntime:
    """One compiled network for each selection of features that is asked for."""

    def __init__(self, network: Network, precision: str) -> None:
        self.name = f"openvino cpu {precision}"
        keep_freed_memory()  # that log-mels need again and again
        self._network = network
        self._precision = precision
        self._core = openvino.Core()
        self._threads = min(threads(), torch.get_num_threads())
        self._streams = ThreadPoolExecutor(self._threads, "openvino")
        self._compiled: dict[tuple[Graph, int], Any] = {}
        self._lock = threading.Lock()
        self._own = threading.local()  # an infer request belongs to one thread

    def features(self, mel: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Normalised log-mel [N, M, F] -> {name: float32}."""
        clips, _, frames = mel.shape
        graph = self._plan(tuple(sorted(names)), clips, frames)
        at_once = max(1, RUN_FRAMES // frames) if graph.clips == ANY else graph.clips
        found = self._run_all(torch.split(mel, at_once), graph)
        return {name: torch.cat(parts) for name, *parts in zip(graph.names, *found, strict=True)}

    def _run_all(self, parts: Sequence[Tensor], graph: Graph) -> list[list[Tensor]]:
        """Side by side where there are several: threads that share a part wait for each other."""
        streams = 2 ** int(math.log2(min(len(parts), self._threads)))
        if streams == 1:
            return [self._run(part, graph, streams) for part in parts]
        return list(self._streams.map(partial(self._run, graph=graph, streams=streams), parts))

    def _plan(self, names: tuple[str, ...], clips: int, frames: int) -> Graph:
        """Of fixed shape where that pays: 7 % for static networks, half for mixed kernels."""
        dynamic = isinstance(self._network.backbone, DyMN)
        if frames not in self._network.frames:
            return Graph(names, 1 if dynamic else ANY)
        together = RUN_FRAMES // frames
        if together >= MANY and not dynamic:
            return Graph(names)  # which takes what is left over without filling it up
        return Graph(names, together if together >= MANY and clips >= MANY else 1, frames)

    def _run(self, mel: Tensor, graph: Graph, streams: int) -> list[Tensor]:
        clips = len(mel)
        if clips < graph.clips:
            mel = functional.pad(mel, (0, 0, 0, 0, 0, graph.clips - clips))
        request = self._request(graph, streams)
        request.infer([np.ascontiguousarray(mel.numpy())], share_inputs=True)
        outputs = (request.get_output_tensor(number).data for number in range(len(graph.names)))
        return [torch.from_numpy(output[:clips].copy()) for output in outputs]

    def _request(self, graph: Graph, streams: int) -> Any:
        requests: dict[tuple[Graph, int], Any] = self._own.__dict__.setdefault("requests", {})
        key = (graph, streams)
        if key not in requests:
            with self._lock:
                if key not in self._compiled:
                    self._compiled[key] = self._compile(graph, streams)
            requests[key] = self._compiled[key].create_infer_request()
        return requests[key]

    def _compile(self, graph: Graph, streams: int) -> Any:
        """For so many runs at a time, which share the threads evenly."""
        options = {
            "NUM_STREAMS": str(streams),
            "INFERENCE_PRECISION_HINT": self._precision,
            "ENABLE_CPU_PINNING": "NO",  # several processes would choose the same cores
            "INFERENCE_NUM_THREADS": str(self._threads),
        }
        return self._core.compile_model(self._model(graph), "CPU", options)

    def _model(self, graph: Graph) -> Any:
        """The converted network, from disk where an earlier process left it."""
        if not self._network.identity:
            return convert(self._network, graph)
        path = self._kept_at(graph)
        if path.is_file():
            try:
                return self._core.read_model(path)
            except RuntimeError:
                log.warning("%s is damaged and will be made anew", path)
        model = convert(self._network, graph)
        try:
            _keep(model, path)
        except OSError as error:
            log.warning("the converted network could not be kept in %s: %s", path.parent, error)
        return model

    def _kept_at(self, graph: Graph) -> Path:
        versions = (__version__, openvino.__version__, torch.__version__)
        key = json.dumps((self._network.identity, versions, graph))
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        return cache_dir() / "openvino" / f"{digest}.xml"


def convert(network: Network, graph: Graph) -> Any:
    """An OpenVINO model of the named features: [N, M, F] -> one output a name."""
    clips = 2 if graph.clips == ANY else graph.clips
    frames = min(network.frames) if graph.frames == ANY else graph.frames
    example = torch.zeros(clips, network.bands, frames)
    backbone = folded(network.backbone)

    def selected(mel: Tensor) -> tuple[Tensor, ...]:
        """Of a function weights are traced as constants, twice as fast as a module's."""
        features = backbone.features_by_name(mel, graph.names)
        return tuple(features[name] for name in graph.names)

    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # Tracing is deprecated in favour of torch.export, which takes a minute here.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            selected, example, check_trace=False
        )
        decoder = TorchScriptPythonDecoder(traced, example_input=(example,))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    shape = [graph.clips, network.bands, graph.frames]
    model.reshape({model.inputs[0]: openvino.PartialShape(shape)})
    return model


def _keep(model: Any, path: Path) -> None:
    """Weights first, then the graph: where the graph is, both are whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        openvino.save_model(model, made, compress_to_fp16=False)
        for suffix in (".bin", ".xml"):
            made.with_suffix(suffix).replace(path.with_suffix(suffix))
