"""OpenVINO on the CPU: compiled from the torch module in memory, stored on disk by its weights."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from embedder.checkpoints import cache_dir
from embedder.identity import numbers
from embedder.networks.dymn import DyMN
from embedder.process import threads
from embedder.runtime import network_cache
from embedder.runtime.base import EngineInput, backbone_names, features_of, joined
from embedder.runtime.conversion import ANY, KERNELS, GraphShape, convert
from embedder.runtime.openvino_library import openvino
from embedder.runtime.selections import Selections
from embedder.runtime.state import fingerprint
from embedder.runtime.tracing import TracedLogMel
from embedder.version import __version__

log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Tensor], dict[str, Tensor]]  # log-mel [N, M, F] -> features

# Mel frames that one run takes; the maps of more frames would not stay in the caches.
RUN_FRAMES: Final = 1024
# A dynamic network's windows run together if there are this many or more, and else one by one.
MANY: Final = 16
# How often a network is compiled at most, each copy for some of the threads.
MAX_COPIES: Final = 4
# How many entries OpenVINO keeps of the shapes it has met, in each compiled network; a shape has
# some 100 entries. More entries make timestamps and changing lengths faster by an eighth, but each
# takes a megabyte or more over all networks. OpenVINO's own bound is 5000, which hundreds of
# lengths fill with gigabytes.
SHAPE_ENTRIES: Final = 20
# How many graphs keep the memory of their maps (20 to 50 MB for each network) between two runs. To
# take it again costs some milliseconds.
WARM: Final = 2
# Raise this when the converted form of a network changes: older stored networks are then not read.
CONVERSION: Final = 3


class Requests:
    """A number of infer requests over compiled networks; `queue` holds the idle ones."""

    def __init__(self, compiled: Sequence[Any], count: int) -> None:
        self._compiled = compiled
        self._count = count
        self.queue: LifoQueue[Any] = LifoQueue()
        for number in range(count):
            self.queue.put(compiled[number % len(compiled)].create_infer_request())

    def release(self) -> bool:
        """Free the memory of the maps until the next run; False if a run is under way."""
        idle = []
        with suppress(Empty):
            while True:
                idle.append(self.queue.get_nowait())
        try:
            if len(idle) == self._count:
                for network in self._compiled:
                    network.release_memory()
            return len(idle) == self._count
        finally:
            for request in idle:
                self.queue.put(request)


class OpenVINOEngine:
    """Compiles a network for some selections of features, and one for all others (`Selections`).

    Each is compiled for the shapes that pay (`_plan`), when they are first needed.
    """

    def __init__(self, network: EngineInput, precision: str) -> None:
        self.name = f"openvino cpu {precision}"
        self._network = network
        self._log_mel = TracedLogMel(network.frontend, network.windows)
        self._precision = precision
        self._core = openvino.Core()
        self._threads = min(threads(), torch.get_num_threads())
        self._pool = single_threaded(self._threads)
        self._under_way = 0  # parts that run or wait, of all calls
        self._requests: dict[tuple[GraphShape, int], Requests] = {}
        self._warm: OrderedDict[tuple[GraphShape, int], Requests] = OrderedDict()  # last used last
        self._selections = Selections(network.backbone)
        self._lock = threading.Lock()

    def features(self, windows: Sequence[Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Groups [n, W] of windows of one length -> {name: float32 [N, ...]}.

        Several parts run side by side, each on one thread from the waveform on: threads that share
        a part would wait for each other.
        """
        frames = self._network.frontend.n_frames(windows[0].shape[1])
        selection = self._selections.with_all_of(backbone_names(names))
        graph = self._plan(selection, sum(map(len, windows)), frames)
        at_once = max(1, RUN_FRAMES // frames) if graph.clips == ANY else graph.clips
        groups = windows if at_once == 1 else [joined(windows)]
        parts = [part for group in groups for part in torch.split(group, at_once)]
        log_mel = partial(self._log_mel, usual=at_once)
        with self._side_by_side(len(parts)) as streams:
            run = partial(self._features, names=names, graph=graph, streams=streams)
            features = self._each(parts, log_mel, run, streams)
        if len(features) == 1:
            return features[0]
        return {name: torch.cat([part[name] for part in features]) for name in names}

    def _each(
        self, parts: Sequence[Tensor], log_mel: Callable[[Tensor], Tensor], run: Run, streams: int
    ) -> list[dict[str, Tensor]]:
        """The features of every part; all log-mels come first, so that each step stays cached."""
        if self._threads == 1:
            return list(map(run, list(map(log_mel, parts))))
        if streams == 1:
            # One thread computes a log-mel: more of torch's would disturb those of the run.
            return list(map(run, self._pool.map(log_mel, parts)))

        def begin(part: Tensor) -> Future[dict[str, Tensor]]:
            return self._pool.submit(run, log_mel(part))

        begun = [self._pool.submit(begin, part) for part in parts]
        # Wait for the last one first: fewer wake-ups, each of which needs the interpreter's lock.
        runs = [future.result() for future in reversed(begun)]
        return [future.result() for future in runs][::-1]

    @contextmanager
    def _side_by_side(self, parts: int) -> Iterator[int]:
        """How many runs share the threads, now that this many more parts are under way."""
        with self._lock:
            self._under_way += parts
            streams = 2 ** int(math.log2(min(self._under_way, self._threads)))
        try:
            yield streams
        finally:
            with self._lock:
                self._under_way -= parts

    @torch.inference_mode()  # set in every thread that comes here, because each has its own mode
    def _features(
        self, mel: Tensor, names: Collection[str], graph: GraphShape, streams: int
    ) -> dict[str, Tensor]:
        return features_of(mel, names, partial(self._run, graph=graph, streams=streams))

    def _plan(self, names: tuple[str, ...], clips: int, frames: int) -> GraphShape:
        """The graph for a selection and its input; its shape is fixed where that pays.

        A fixed shape saves 7 % of a static network's time, and 50 % of a dynamic network's.
        """
        dynamic = isinstance(self._network.backbone, DyMN)
        usual = frames in self._network.frames and self._selections.is_own(names)
        if not usual:
            return GraphShape(names, 1 if dynamic else ANY)
        together = RUN_FRAMES // frames
        if together >= MANY and not dynamic:
            return GraphShape(names)  # any number of clips: the last run needs no filling up
        return GraphShape(names, together if together >= MANY and clips >= MANY else 1, frames)

    def _run(
        self, mel: Tensor, names: tuple[str, ...], graph: GraphShape, streams: int
    ) -> list[Tensor]:
        clips = len(mel)
        if clips < graph.clips:
            mel = functional.pad(mel, (0, 0, 0, 0, 0, graph.clips - clips))
        with self._borrowed(graph, streams) as request:
            request.set_input_tensor(openvino.Tensor(mel.numpy(), shared_memory=True))
            request.infer(share_outputs=True)
            outputs = map(request.get_output_tensor, map(graph.names.index, names))
            return [torch.from_numpy(output.data[:clips].copy()) for output in outputs]

    @contextmanager
    def _borrowed(self, graph: GraphShape, streams: int) -> Iterator[Any]:
        """An idle one of the `streams` infer requests; if all are in use, wait for one."""
        with self._lock:
            if (graph, streams) not in self._requests:
                self._requests[graph, streams] = self._new_requests(graph, streams)
            requests = self._requests[graph, streams]
            self._warm[graph, streams] = requests
            self._warm.move_to_end((graph, streams))
        request = requests.queue.get()
        try:
            yield request
        finally:
            requests.queue.put(request)
            self._cool()

    def _cool(self) -> None:
        """Free the memory of the maps of all graphs but those used last."""
        with self._lock:
            for key in list(self._warm)[:-WARM]:
                if self._warm[key].release():
                    del self._warm[key]

    def _new_requests(self, graph: GraphShape, streams: int) -> Requests:
        """The infer requests of a graph: each on a compiled network of its own, if they are few.

        Such a network runs in the thread that calls it. A network with several streams gives every
        clip to a thread of its own, which takes a tenth longer but needs its weights only once.
        """
        copies = streams if streams <= MAX_COPIES else 1
        options = {
            "NUM_STREAMS": str(streams // copies),
            "INFERENCE_PRECISION_HINT": self._precision,
            "ENABLE_CPU_PINNING": "NO",  # several processes would choose the same cores
            "INFERENCE_NUM_THREADS": str(self._threads // copies),
            "CPU_RUNTIME_CACHE_CAPACITY": str(SHAPE_ENTRIES),
        }
        model = self._model(graph)
        return Requests(
            [self._core.compile_model(model, "CPU", options) for _ in range(copies)], streams
        )

    def _model(self, graph: GraphShape) -> Any:
        """The converted network, read from disk if an earlier process has stored it."""
        folder = self._stored_at(graph) if self._is_published() else None
        if folder is not None and (model := network_cache.read(self._core, folder)) is not None:
            return model
        model = convert(self._network, graph)
        try:
            if folder is not None and self._is_published():
                return network_cache.write(self._core, model, folder, graph.kernels)
            if not graph.kernels:
                return model
            return network_cache.passed_through(self._core, model, graph.kernels)
        except OSError as error:
            # The network runs all the same, but without its kernels up to a tenth slower.
            log.warning("the converted network could not be kept on disk: %s", error)
            return model

    def _is_published(self) -> bool:
        """Whether the weights are a file's, at this moment."""
        identity = self._network.identity
        return identity != "" and fingerprint(self._network.backbone) == identity

    def _stored_at(self, graph: GraphShape) -> Path:
        """The folder of a graph, named by all that decides its stored form.

        Precision and threads are not part of it: they are chosen when the network is compiled.
        """
        network = self._network
        versions = (__version__, CONVERSION, openvino.__version__, torch.__version__)
        kind, front_end = type(network.backbone).__qualname__, network.frontend.config
        identity = numbers(network.identity, front_end, kind, f"openvino {versions}")
        key = json.dumps((identity, network.frames, graph, KERNELS))
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        return cache_dir() / "openvino" / digest


def single_threaded(count: int) -> ThreadPoolExecutor:
    """A pool in whose threads torch computes on one thread; elsewhere it uses as many as before."""
    all_threads = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # a first call after the next line would undo it
        torch.set_num_threads(1)  # for this thread, and for new ones until the last line below
        started.wait()

    pool = ThreadPoolExecutor(count, "openvino", start)
    for _ in range(count):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(all_threads)
    return pool
