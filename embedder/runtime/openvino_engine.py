"""OpenVINO on the CPU: compiled from the torch module in memory, kept on disk by its weights.

No usage statistics leave: OpenVINO's reporter is kept from being imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import LifoQueue
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder import __version__
from embedder.allocator import keep_freed_memory
from embedder.checkpoints import cache_dir
from embedder.dymn import DyMN
from embedder.runtime import Network, backbone_names, features_of, joined, outputs_of
from embedder.runtime.folding import folded
from embedder.runtime.forks import ProcessLock
from embedder.runtime.tracing import TracedLogMel, traced
from embedder.threads import threads

# What is None here counts as not installed. It would report to Intel, and write into the home.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402

# NumPy's types are looked up at the first need of one. Threads that need one at the same time wait
# for each other for ever (pybind11's fault, within OpenVINO); this module is imported by one alone.
openvino.Type.f32.to_dtype()

log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Tensor], dict[str, Tensor]]  # of a log-mel [N, M, F]

# Frames that one run takes: the maps of more do not stay in the caches.
RUN_FRAMES: Final = 1024
# A dynamic network's windows run together from so many on, and else one by one.
MANY: Final = 16
ANY: Final = -1
# For single clips of the usual length: convolutions of maps in blocks of 16 channels. OpenVINO's
# own choice, maps with all channels together, takes 2 to 10 % longer. For other graphs it falls
# back on far slower ones if it cannot follow the wish.
KERNELS: Final = {
    "Convolution": "cpu:jit_avx512_1x1,cpu:jit_avx512",
    "GroupConvolution": "cpu:jit_avx512_dw",
}
# How a graph's file names a layer, and what to add there.
LAYER: Final = re.compile(r'<layer [^>]*type="(?P<type>\w+)"[^>]*>')
WISH: Final = '<rt_info><attribute name="primitives_priority" version="0" value="{}" /></rt_info>'
# Networks that are compiled several times, each for some of the threads.
MAX_COPIES: Final = 4
_converting: Final = ProcessLock()


class Graph(NamedTuple):
    """What is compiled: features, and the shape of their input where it is fixed."""

    names: tuple[str, ...]
    clips: int = ANY
    frames: int = ANY

    @property
    def kernels(self) -> Mapping[str, str]:
        """Asked for by type of layer; none where the choice is OpenVINO's."""
        return KERNELS if self.clips == 1 and self.frames != ANY else {}


class OpenVINORuntime:
    """One compiled network for each selection of features that is asked for."""

    def __init__(self, network: Network, precision: str) -> None:
        self.name = f"openvino cpu {precision}"
        keep_freed_memory()  # that log-mels need again and again
        self._network = network
        self._log_mel = TracedLogMel(network.frontend, network.windows)
        self._precision = precision
        self._core = openvino.Core()
        self._threads = min(threads(), torch.get_num_threads())
        self._pool = single_threaded(self._threads)
        self._under_way = 0  # parts of all calls
        self._requests: dict[tuple[Graph, int], LifoQueue[Any]] = {}
        self._lock = threading.Lock()

    def features(self, windows: Sequence[Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """[n, W], ... -> {name: float32 [N, ...]}.

        Where there are several parts, they run side by side from the waveform on: threads that
        share a part wait for each other.
        """
        frames = self._network.frontend.n_frames(windows[0].shape[1])
        graph = self._plan(backbone_names(names), sum(map(len, windows)), frames)
        at_once = max(1, RUN_FRAMES // frames) if graph.clips == ANY else graph.clips
        groups = windows if at_once == 1 else [joined(windows)]
        parts = [part for group in groups for part in torch.split(group, at_once)]
        log_mel = partial(self._log_mel, usual=at_once)
        with self._side_by_side(len(parts)) as streams:
            run = partial(self._features, names=names, graph=graph, streams=streams)
            found = self._each(parts, log_mel, run, streams)
        if len(found) == 1:
            return found[0]
        return {name: torch.cat([part[name] for part in found]) for name in names}

    def _each(
        self, parts: Sequence[Tensor], log_mel: Callable[[Tensor], Tensor], run: Run, streams: int
    ) -> list[dict[str, Tensor]]:
        """All log-mels, then all runs: what a step needs stays in the caches."""
        if self._threads == 1:
            return list(map(run, list(map(log_mel, parts))))
        if streams == 1:
            # A log-mel is one thread's work: several of torch's would be in the way of the run's.
            return list(map(run, self._pool.map(log_mel, parts)))

        def hear(part: Tensor) -> Future[dict[str, Tensor]]:
            return self._pool.submit(run, log_mel(part))

        # The last one first: this thread, too, needs the interpreter whenever it wakes up.
        heard = [self._pool.submit(hear, part) for part in parts]
        runs = [future.result() for future in reversed(heard)]
        return [future.result() for future in runs][::-1]

    @contextmanager
    def _side_by_side(self, parts: int) -> Iterator[int]:
        """How many runs share the threads while so many more parts are under way."""
        with self._lock:
            self._under_way += parts
            streams = 2 ** int(math.log2(min(self._under_way, self._threads)))
        try:
            yield streams
        finally:
            with self._lock:
                self._under_way -= parts

    @torch.inference_mode()  # of whichever thread this is
    def _features(
        self, mel: Tensor, names: Collection[str], graph: Graph, streams: int
    ) -> dict[str, Tensor]:
        return features_of(mel, names, lambda mel, _: self._run(mel, graph, streams))

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
        with self._borrowed(graph, streams) as request:
            request.set_input_tensor(openvino.Tensor(mel.numpy(), shared_memory=True))
            request.infer(share_outputs=True)
            outputs = map(request.get_output_tensor, range(len(graph.names)))
            return [torch.from_numpy(output.data[:clips].copy()) for output in outputs]

    @contextmanager
    def _borrowed(self, graph: Graph, streams: int) -> Iterator[Any]:
        """One of as many infer requests as run side by side; whoever comes too late waits."""
        with self._lock:
            if (graph, streams) not in self._requests:
                self._requests[graph, streams] = self._new_requests(graph, streams)
            requests = self._requests[graph, streams]
        request = requests.get()
        try:
            yield request
        finally:
            requests.put(request)

    def _new_requests(self, graph: Graph, streams: int) -> LifoQueue[Any]:
        """Each of a compiled network of its own, if they are few.

        Such a network runs in the thread that asks. One with several streams hands every clip to
        a thread of its own, which takes a tenth longer, but holds its weights once.
        """
        copies = streams if streams <= MAX_COPIES else 1
        options = {
            "NUM_STREAMS": str(streams // copies),
            "INFERENCE_PRECISION_HINT": self._precision,
            "ENABLE_CPU_PINNING": "NO",  # several processes would choose the same cores
            "INFERENCE_NUM_THREADS": str(self._threads // copies),
        }
        model = self._model(graph)
        compiled = [self._core.compile_model(model, "CPU", options) for _ in range(copies)]
        requests: LifoQueue[Any] = LifoQueue()
        for number in range(streams):
            requests.put(compiled[number % copies].create_infer_request())
        return requests

    def _model(self, graph: Graph) -> Any:
        """The converted network, from disk where an earlier process left it."""
        if self._network.identity:
            return self._kept(graph, self._kept_at(graph))
        if not graph.kernels:
            return convert(self._network, graph)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return self._kept(graph, Path(folder) / "network.xml")

    def _kept(self, graph: Graph, path: Path) -> Any:
        if path.is_file():
            try:
                return self._core.read_model(path)
            except RuntimeError:
                log.warning("%s is damaged and will be made anew", path)
        model = convert(self._network, graph)
        try:
            _keep(model, path, graph.kernels)
        except OSError as error:
            log.warning("the converted network could not be kept in %s: %s", path.parent, error)
            return model  # without its kernels it takes up to a tenth longer
        return self._core.read_model(path) if graph.kernels else model

    def _kept_at(self, graph: Graph) -> Path:
        versions = (__version__, openvino.__version__, torch.__version__)
        key = json.dumps((self._network.identity, versions, graph, KERNELS))
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        return cache_dir() / "openvino" / f"{digest}.xml"


def single_threaded(count: int) -> ThreadPoolExecutor:
    """Threads within which torch uses one thread each, and as many as before everywhere else."""
    all_threads = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # which would take the others' number later, at the first need
        torch.set_num_threads(1)  # of this thread; of new ones too, until it is set again
        started.wait()

    pool = ThreadPoolExecutor(count, "openvino", start)
    for _ in range(count):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(all_threads)
    return pool


def convert(network: Network, graph: Graph) -> Any:
    """An OpenVINO model of the named features: [N, M, F] -> one output a name.

    One at a time in a process: OpenVINO's reader of torch's graphs has variables that its threads
    share, and finds "duplicated producers" where two read at once.
    """
    with _converting:
        return _converted(network, graph)


def _converted(network: Network, graph: Graph) -> Any:
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
    shape = [graph.clips, bands, graph.frames]
    model.reshape({model.inputs[0]: openvino.PartialShape(shape)})
    return model


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


def _keep(model: Any, path: Path, kernels: Mapping[str, str]) -> None:
    """Weights first, then the graph: where the graph is, both are whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        openvino.save_model(model, made, compress_to_fp16=False)
        if kernels:
            _prefer(made, kernels)
        for suffix in (".bin", ".xml"):
            made.with_suffix(suffix).replace(path.with_suffix(suffix))


def _prefer(path: Path, kernels: Mapping[str, str]) -> None:
    """Have layers of a saved graph run on these kernels, by type, where the processor has them.

    OpenVINO takes such wishes from files alone.
    """

    def wished(layer: re.Match[str]) -> str:
        wish = kernels.get(layer["type"])
        return layer[0] + (WISH.format(wish) if wish else "")

    text = path.read_text("utf-8")
    path.write_text(LAYER.sub(wished, text), "utf-8")
