"""OpenVINO on the CPU: compiled from the torch module in memory, kept on disk by its weights."""

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
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from embedder.checkpoints import cache_dir
from embedder.networks.dymn import DyMN
from embedder.process import threads
from embedder.runtime import kept
from embedder.runtime.base import EngineInput, backbone_names, features_of, joined
from embedder.runtime.conversion import ANY, KERNELS, Graph, convert
from embedder.runtime.openvino_library import openvino
from embedder.runtime.selections import Selections
from embedder.runtime.state import fingerprint
from embedder.runtime.tracing import TracedLogMel
from embedder.version import __version__

log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Tensor], dict[str, Tensor]]  # of a log-mel [N, M, F]

# Frames that one run takes: the maps of more do not stay in the caches.
RUN_FRAMES: Final = 1024
# A dynamic network's windows run together from so many on, and else one by one.
MANY: Final = 16
# Networks that are compiled several times, each for some of the threads.
MAX_COPIES: Final = 4
# What OpenVINO keeps of the shapes it has met, in each compiled network; a shape has some 100
# entries. More make timestamps and changing lengths faster by an eighth, and each takes a megabyte
# or more over all networks. Its own bound is 5000, which hundreds of lengths fill with gigabytes.
SHAPE_ENTRIES: Final = 20
# Graphs that keep the memory of their maps (20 to 50 MB for each network) between two runs. To take
# it again costs some milliseconds.
WARM: Final = 2
# Raised when converting changes what comes out of it.
CONVERSION: Final = 3


class Requests:
    """So many infer requests of compiled networks; `queue` has those that are idle."""

    def __init__(self, compiled: Sequence[Any], count: int) -> None:
        self._compiled = compiled
        self._count = count
        self.queue: LifoQueue[Any] = LifoQueue()
        for number in range(count):
            self.queue.put(compiled[number % len(compiled)].create_infer_request())

    def release(self) -> bool:
        """Free the memory of maps until the next run, unless there is a run now."""
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


class OpenVINORuntime:
    """A compiled network for each of the first selections of features, and one for all others."""

    def __init__(self, network: EngineInput, precision: str) -> None:
        self.name = f"openvino cpu {precision}"
        self._network = network
        self._log_mel = TracedLogMel(network.frontend, network.windows)
        self._precision = precision
        self._core = openvino.Core()
        self._threads = min(threads(), torch.get_num_threads())
        self._pool = single_threaded(self._threads)
        self._under_way = 0  # parts of all calls
        self._requests: dict[tuple[Graph, int], Requests] = {}
        self._warm: OrderedDict[tuple[Graph, int], Requests] = OrderedDict()  # last used last
        self._selections = Selections(network.backbone)
        self._lock = threading.Lock()

    def features(self, windows: Sequence[Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """[n, W], ... -> {name: float32 [N, ...]}.

        Where there are several parts, they run side by side from the waveform on: threads that
        share a part wait for each other.
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
        return features_of(mel, names, partial(self._run, graph=graph, streams=streams))

    def _plan(self, names: tuple[str, ...], clips: int, frames: int) -> Graph:
        """Of fixed shape where that pays: 7 % for static networks, half for mixed kernels."""
        dynamic = isinstance(self._network.backbone, DyMN)
        usual = frames in self._network.frames and self._selections.is_own(names)
        if not usual:
            return Graph(names, 1 if dynamic else ANY)
        together = RUN_FRAMES // frames
        if together >= MANY and not dynamic:
            return Graph(names)  # which takes what is left over without filling it up
        return Graph(names, together if together >= MANY and clips >= MANY else 1, frames)

    def _run(self, mel: Tensor, names: tuple[str, ...], graph: Graph, streams: int) -> list[Tensor]:
        clips = len(mel)
        if clips < graph.clips:
            mel = functional.pad(mel, (0, 0, 0, 0, 0, graph.clips - clips))
        with self._borrowed(graph, streams) as request:
            request.set_input_tensor(openvino.Tensor(mel.numpy(), shared_memory=True))
            request.infer(share_outputs=True)
            outputs = map(request.get_output_tensor, map(graph.names.index, names))
            return [torch.from_numpy(output.data[:clips].copy()) for output in outputs]

    @contextmanager
    def _borrowed(self, graph: Graph, streams: int) -> Iterator[Any]:
        """One of as many infer requests as run side by side; whoever comes too late waits."""
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
        """Leave memory for maps to the graphs that were used last."""
        with self._lock:
            for key in list(self._warm)[:-WARM]:
                if self._warm[key].release():
                    del self._warm[key]

    def _new_requests(self, graph: Graph, streams: int) -> Requests:
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
            "CPU_RUNTIME_CACHE_CAPACITY": str(SHAPE_ENTRIES),
        }
        model = self._model(graph)
        return Requests(
            [self._core.compile_model(model, "CPU", options) for _ in range(copies)], streams
        )

    def _model(self, graph: Graph) -> Any:
        """The converted network, from disk where an earlier process left it."""
        folder = self._kept_at(graph) if self._is_published() else None
        if folder is not None and (model := kept.read(self._core, folder)) is not None:
            return model
        model = convert(self._network, graph)
        try:
            if folder is not None and self._is_published():
                return kept.keep(self._core, model, folder, graph.kernels)
            return kept.passed_through(self._core, model, graph.kernels) if graph.kernels else model
        except OSError as error:
            # Without its kernels it takes up to a tenth longer.
            log.warning("the converted network could not be kept on disk: %s", error)
            return model

    def _is_published(self) -> bool:
        """Whether the numbers are those of a file, now that they are read."""
        identity = self._network.identity
        return identity != "" and fingerprint(self._network.backbone) == identity

    def _kept_at(self, graph: Graph) -> Path:
        """By all that decides the saved form; precision and threads are chosen for it later."""
        versions = (__version__, CONVERSION, openvino.__version__, torch.__version__)
        network = self._network
        front_end = (asdict(network.frontend.config), network.frames)
        key = json.dumps((network.identity, front_end, versions, graph, KERNELS))
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        return cache_dir() / "openvino" / digest


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
