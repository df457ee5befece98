"""Which models are served, and what it takes to have them: load, warm up, batch."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from embedder.defaults import SCENE_WINDOW_MS
from embedder.errors import DownloadFailed, EmbedderError, UnknownModel
from embedder.events.frames import detects
from embedder.identity import identity
from embedder.model import EVENTS, TAGS, AudioEmbedder
from embedder.zoo import ModelSpec, lookup
from service.batching import Batcher, BatchLimits
from service.errors import RETRY_SECONDS, NotReady
from service.settings import Settings
from service.singleflight import SingleFlight

_CPU_BATCH_SECONDS: Final = 80.0  # eight clips of 10 s are fastest; caches overflow beyond
_GPU_BATCH_SECONDS: Final = 320.0
_CPU_IN_FLIGHT: Final = 2  # log-mels and the last clips of a batch leave cores to the other batch
_log = logging.getLogger(__name__)


class WindowModel(Protocol):
    """What the service needs of a model; `embedder.AudioEmbedder` is such a model."""

    name: str
    spec: ModelSpec
    labels: tuple[str, ...]
    taps: tuple[str, ...]
    weights_sha256: str

    @property
    def sample_rate(self) -> int:
        """Hertz."""

    @property
    def tap_sizes(self) -> Mapping[str, int]:
        """Values of every feature that may be asked for."""

    @property
    def device(self) -> torch.device:
        """The device on which it computes."""

    @property
    def engine(self) -> str:
        """The name of what runs the network, as far as it decides the numbers."""

    def check_taps(self, taps: Iterable[str]) -> tuple[str, ...]:
        """These features in this order, or UnknownTap."""

    def window_features(self, batch: Sequence[Tensor], taps: Iterable[str]) -> dict[str, Tensor]:
        """[n, W], ... -> {tap: [N, size]}; "tags" names the labels' probabilities."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model at work. `identity` is all that decides its numbers; cache keys have it."""

    model: WindowModel
    batcher: Batcher
    identity: tuple[str, ...]


class Models:
    """The models of one server: the default is loaded at the start, others at their first use."""

    def __init__(
        self,
        settings: Settings,
        loaded: Mapping[str, WindowModel] | None = None,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self._settings = settings
        self._given = loaded
        self._observe = observe
        self._sources = (
            {_served_name(source): source for source in (settings.model, *settings.models)}
            if loaded is None
            else {name: name for name in loaded}
        )
        self.default = next(iter(self._sources))
        self._served: dict[str, Served] = {}
        self._batchers: list[Batcher] = []  # also of models that still warm up
        self._loading: SingleFlight[Served] = SingleFlight()
        self._executors: dict[torch.device, ThreadPoolExecutor] = {}
        self._starting: asyncio.Task[None] | None = None
        self._refused: dict[str, tuple[float, EmbedderError]] = {}  # until when, and why
        self.reading = 0  # threads that fetch and read weights
        self.failure = ""
        self.fatal = False

    def start(self) -> None:
        """Begin to load the default model."""
        self._starting = asyncio.create_task(self._load_default())

    async def close(self) -> None:
        """Finish the batches in progress and fail what waits."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await asyncio.gather(*(served.batcher.close() for served in self._served.values()))
        for executor in self._executors.values():
            executor.shutdown()

    @property
    def names(self) -> list[str]:
        """Every model that may be asked for, the default first."""
        return list(self._sources)

    @property
    def loaded(self) -> dict[str, Served]:
        """The models that are at work, by name."""
        return self._served

    @property
    def ready(self) -> bool:
        """The default model has made a forward pass, and every batcher is at work."""
        return self.default in self._served and all(
            served.batcher.alive for served in self._served.values()
        )

    @property
    def oldest_batch_seconds(self) -> float:
        """How long the oldest unfinished batch has taken so far."""
        return max((batcher.oldest_seconds for batcher in self._batchers), default=0.0)

    @property
    def hung(self) -> bool:
        """Whether a batch takes so long that it will hardly end."""
        return self.oldest_batch_seconds > self._settings.hung_seconds

    async def get(self, name: str | None) -> Served:
        """A model at work, the default without a name.

        Raises
        ------
        UnknownModel : not served here.
        WeightsError, NotReady : this model cannot be had; it is tried again after a while.
        """
        name = name or self.default
        if name not in self._sources:
            raise UnknownModel(name, self._sources, "GET /v1/models")
        if name in self._served:
            return self._served[name]
        until, refusal = self._refused.get(name, (0.0, None))
        if refusal is not None and time.monotonic() < until:
            raise refusal.with_traceback(None)
        return await self._loading.join(name, lambda: self._load_further(name))

    async def _load_further(self, name: str) -> Served:
        """Load a model; after a failure, requests are refused for a while before the next try."""
        try:
            return await self._load(name)
        except EmbedderError as error:
            self._refuse(name, error)
            raise
        except Exception as error:
            _log.exception("cannot load %s", name)
            reason = "this model cannot be loaded here at present; the server's log says why"
            refusal = NotReady(reason, RETRY_SECONDS)
            self._refuse(name, refusal)
            raise refusal from error

    def _refuse(self, name: str, error: EmbedderError) -> None:
        self._refused[name] = time.monotonic() + RETRY_SECONDS, error

    async def _load_default(self) -> None:
        """Load the default model. Only a failed download is tried again, for a set time."""
        settings = self._settings
        deadline = time.monotonic() + settings.start_seconds
        while True:
            try:
                await self._load(self.default)
                return
            except Exception as error:
                if not _may_pass(error) or time.monotonic() + RETRY_SECONDS > deadline:
                    self._give_up(error)
                    return
                if not self.failure:
                    self.failure = "the default model cannot be loaded yet; the log says why"
                    _log.warning(
                        "cannot load %s: %s. Trying again every %d s, for %g s",
                        *(self.default, error, RETRY_SECONDS, settings.start_seconds),
                    )
            await asyncio.sleep(RETRY_SECONDS)

    def _give_up(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, EmbedderError) else repr(error)
        _log.error("cannot load %s: %s", self.default, reason, exc_info=_unless_ours(error))
        self.failure = "the default model cannot be loaded; the server's log says why"
        self.fatal = True

    async def _load(self, name: str) -> Served:
        model = await asyncio.to_thread(self._read, name)
        limits = self._batch_limits(model)
        executor = self._executors.setdefault(
            model.device, ThreadPoolExecutor(limits.in_flight, f"device-{model.device}")
        )
        batcher = Batcher(model.window_features, executor, limits, self._observe)
        batcher.start()
        self._batchers.append(batcher)
        try:
            await _warm_up(model, batcher)
        except BaseException:
            await batcher.close()
            self._batchers.remove(batcher)
            raise
        served = Served(model, batcher, tuple(identity(model).values()))
        self._served[name] = served
        _log.info("serving %s on %s", name, model.device)
        return served

    def _read(self, name: str) -> WindowModel:
        self.reading += 1
        try:
            return self._read_source(name)
        finally:
            self.reading -= 1

    def _read_source(self, name: str) -> WindowModel:
        source = self._sources[name]
        if self._given is not None:
            return self._given[source]
        settings = self._settings
        torch.set_num_threads(settings.threads_of_worker)
        weights = settings.weights if name == self.default else None
        model = AudioEmbedder.load(
            source, weights=weights, device=settings.device, runtime=settings.runtime
        )
        # All objects so far stay; unfrozen, the collector would walk through them all the time.
        gc.collect()
        gc.freeze()
        return model

    def _batch_limits(self, model: WindowModel) -> BatchLimits:
        settings = self._settings
        on_cpu = model.device.type == "cpu"
        seconds = settings.max_batch_seconds or (
            _CPU_BATCH_SECONDS if on_cpu else _GPU_BATCH_SECONDS
        )
        return BatchLimits(
            max_samples=round(seconds * model.sample_rate),
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_requests,
            in_flight=min(_CPU_IN_FLIGHT, settings.threads_of_worker) if on_cpu else 1,
        )


async def _warm_up(model: WindowModel, batcher: Batcher) -> None:
    """Run what most requests ask for.

    An engine compiles a network for each selection of features and kind of batch, which takes up to
    a second. Without this, the first requests would wait for it, and all others beside them.
    """
    scene = SCENE_WINDOW_MS / 1000
    for clips, seconds in ((1, 1.0), (1, scene), (2, scene)):
        # Embeddings, tags and events together: then one network serves each of them, too.
        silence = torch.zeros(clips, round(seconds * model.sample_rate))
        events = (EVENTS,) if detects(model.spec) else ()
        await batcher.submit(silence, (*model.taps, TAGS, *events))


def _may_pass(error: Exception) -> bool:
    """Whether the same attempt may succeed later: the network failed, not the disk or the file."""
    return isinstance(error, DownloadFailed) and isinstance(error.__cause__, ConnectionError)


def _unless_ours(error: Exception) -> Exception | None:
    return None if isinstance(error, EmbedderError) else error


def _served_name(source: str) -> str:
    """A name of the zoo, or the stem of a self-describing checkpoint's path."""
    if source.endswith(".safetensors"):
        return Path(source).stem
    lookup(source)
    return source
