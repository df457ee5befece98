"""Waveform to embedding: the whole road on one page.

    windows ─ frontend ─ backbone ─ taps ─ mean over windows ─ embedding
    B n W     N M F      N C f t    N D    B D

Axes: B clips, S samples, n windows a clip, N = B n, W samples a window, T timestamps, D values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedder import checkpoints, probe_head, windows
from embedder.audio import check_peak
from embedder.detection import Clock, FrameProbabilities, check_detects, find_events, joined
from embedder.dymn import DyMN
from embedder.errors import BadAudio, BadRequest, UnknownTap, WeightsMismatch
from embedder.events import MEDIAN, THRESHOLD, Event, EventRules, Threshold
from embedder.frame_mn import FrameMN, published_names
from embedder.frontend import MEL, LogMel
from embedder.labels import default_labels
from embedder.mn import MN
from embedder.runtime import choose
from embedder.runtime.current import Current
from embedder.windows import (
    SCENE_HOP_MS,
    SCENE_WINDOW_MS,
    TIMESTAMP_HOP_MS,
    TIMESTAMP_WINDOW_MS,
    Plan,
    WindowPlan,
    chunk_plan,
    scene_plan,
    timestamp_plan,
)
from embedder.zoo import DyMNConfig, FrameMNConfig, MNConfig, ModelSpec, lookup

Waveforms = Tensor | NDArray[np.floating[Any]]

BACKBONES: Final[dict[type, Callable[[Any], Any]]] = {
    MNConfig: MN,
    DyMNConfig: DyMN,
    FrameMNConfig: FrameMN,
}

# Features beside MEL and the backbone's own: sigmoids of the clip's and the frames' logits.
TAGS: Final = "tags"
EVENTS: Final = "events"
PROBABILITIES: Final = {TAGS: "logits", EVENTS: "strong"}


@dataclass(frozen=True, slots=True)
class Timestamps:
    """Vectors around points in time.

    `vectors` [B, T, D] and the centres of their windows, `ms` [B, T], in milliseconds (float64).
    Unpacks as a pair.
    """

    vectors: Tensor
    ms: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.vectors, self.ms))


class AudioEmbedder(nn.Module):
    """One loaded model. Build it with `load` (checkpoint) or `build` (random weights)."""

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        taps: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.spec = spec
        self.weights_sha256 = ""  # of random weights
        self.labels: tuple[str, ...] = tuple(labels or default_labels(spec.network.n_classes))
        self.probe: probe_head.Probe | None = None  # whose labels they are, then
        self.frontend = LogMel(spec.mel)
        with torch.inference_mode(False):  # weights that know when they are written to
            self.backbone: Any = BACKBONES[type(spec.network)](spec.network)
        self.tap_sizes: dict[str, int] = {MEL: spec.mel.n_mels, **self.backbone.tap_sizes}
        self.taps = self.check_taps(spec.taps if taps is None else taps)
        self.eval().requires_grad_(False)
        usual = (scene_plan(self.sample_rate), timestamp_plan(self.sample_rate))
        lengths = tuple(plan.window for plan in usual)
        self._current = Current(self.frontend, self.backbone, lengths)

    @classmethod
    def build(cls, name: str, taps: Sequence[str] | None = None) -> AudioEmbedder:
        """The architecture of a published model with random weights."""
        return cls(name, lookup(name), taps)

    @classmethod
    def load(
        cls,
        name: str,
        weights: str | Path | None = None,
        taps: Sequence[str] | None = None,
        device: str = "auto",
        runtime: str = "auto",
    ) -> AudioEmbedder:
        """A model with its checkpoint, ready to use.

        Parameters
        ----------
        name : a row of the zoo (`embedder models`), or the path of a self-describing
            .safetensors checkpoint, such as fine-tuning writes, or of a probe.
        weights : a checkpoint to use instead of the one searched for.
        taps : features that make up the embedding, in this order; default: the model's.
        device : "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
        runtime : what runs the network, one of `embedder.runtime.CHOICES`.

        Raises
        ------
        UnknownModel, UnknownTap, BadRequest : an argument names nothing there is.
        WeightsError : the checkpoint cannot be had, or does not fit.
        """
        place = _device(device)
        choose(runtime, place)  # refused before anything is fetched
        if name.endswith(".safetensors"):
            path = Path(name)
            if probe := probe_head.read(path):
                underneath = cls.load(probe.source(path), weights, taps, device, runtime)
                return probe.attach(underneath, path)
            checkpoint = checkpoints.read_described(path)
            name = path.stem
        else:
            checkpoint = checkpoints.load(lookup(name), weights)
        spec = checkpoint.spec or lookup(name)
        model = cls(name, spec, taps, checkpoint.labels)
        try:
            model.backbone.load_state_dict(published_names(checkpoint.state), strict=True)
        except RuntimeError as error:
            raise WeightsMismatch(f"the checkpoint does not fit {name}: {error}") from error
        model.weights_sha256 = checkpoint.sha256
        model._current.identify()
        model.to(place).use(runtime)
        return model

    @property
    def runtime(self) -> str:
        """Which of `embedder.runtime.CHOICES` runs the network."""
        return self._current.choice

    def use(self, runtime: str) -> None:
        """Run the network on one of `embedder.runtime.CHOICES`, made anew from its weights.

        Changed weights show by themselves, unless they were written through `Tensor.data`:
        after that, `model.use(model.runtime)` makes them show.
        """
        self._current.choice = choose(runtime, self.device)
        self._current.renew()

    @property
    def sample_rate(self) -> int:
        """Hertz; every waveform is expected at this rate."""
        return self.spec.mel.sample_rate

    @property
    def scene_embedding_size(self) -> int:
        """D of scene embeddings."""
        return sum(self.tap_sizes[tap] for tap in self.taps)

    @property
    def timestamp_embedding_size(self) -> int:
        """D of timestamp embeddings."""
        return self.scene_embedding_size

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.frontend.bank.device

    @property
    def engine(self) -> str:
        """What computes, as far as it decides the numbers; part of every cache key."""
        return self._current.runtime().name

    def scene(
        self,
        waveforms: Waveforms,
        window_ms: float = SCENE_WINDOW_MS,
        hop_ms: float = SCENE_HOP_MS,
    ) -> Tensor:
        """One vector a clip: float32 [B, S] in [-1, 1] -> [B, D].

        Clips up to one window go through in one piece; longer ones are the mean over windows
        (arXiv 2303.01879, section III). One clip [S] counts as a batch of one. Raises BadAudio
        for empty, non-finite or non-float input.
        """
        return self.scene_stream([waveforms], window_ms, hop_ms)

    def timestamps(
        self,
        waveforms: Waveforms,
        window_ms: float = TIMESTAMP_WINDOW_MS,
        hop_ms: float = TIMESTAMP_HOP_MS,
    ) -> Timestamps:
        """A vector every `hop_ms`: [B, S] -> ([B, T, D], [B, T] ms), T = floor(S / hop) + 1.

        Each comes from the window of `window_ms` centred there; the clip is mirrored at its ends.
        """
        parts = list(self.timestamps_stream([waveforms], window_ms, hop_ms))
        return Timestamps(
            torch.cat([part.vectors for part in parts], 1), torch.cat([p.ms for p in parts], 1)
        )

    def tags(self, waveforms: Waveforms) -> Tensor:
        """Probability of each label: [B, S] -> [B, len(labels)].

        Labels are independent; clips over 10 s give the mean over the scene windows.
        """
        return self.tags_stream([waveforms])

    def window_tags(
        self,
        waveforms: Waveforms,
        window_ms: float = SCENE_WINDOW_MS,
        hop_ms: float = SCENE_HOP_MS,
    ) -> Timestamps:
        """Probabilities of every scene window: ([B, n, len(labels)], [B, n] centres in ms).

        The one window of a clip that goes through whole is centred in the clip's middle.
        """
        wave = check_waveforms(waveforms)
        plan = scene_plan(self.sample_rate, window_ms, hop_ms)
        vectors = torch.cat(list(self._window_vectors([wave], plan, (TAGS,))), 1)
        if plan.whole_clips and wave.shape[1] <= plan.window:
            centre = wave.shape[1] / 2 * 1000 / self.sample_rate
            return Timestamps(vectors, vectors.new_full((len(wave), 1), centre))
        return Timestamps(vectors, _centres(vectors, 0, hop_ms))

    def events(
        self,
        waveforms: Waveforms,
        threshold: Threshold = THRESHOLD,
        median: int = MEDIAN,
        min_duration_ms: float = 0.0,
        merge_gap_ms: float = 0.0,
    ) -> list[list[Event]]:
        """What sounds when: [B, S] -> the events of each clip, by onset.

        Clips of any length; `EventRules.of` explains the options. Raises BadRequest if this model
        has no frame-wise heads.
        """
        return self.events_stream([waveforms], threshold, median, min_duration_ms, merge_gap_ms)

    def frame_probabilities(self, waveforms: Waveforms) -> FrameProbabilities:
        """Each label's probability every 40 ms: [B, S] -> ([B, T, len(labels)], [B, T] ms).

        Not filtered. Consecutive chunks of 10 s, the last one filled with zeros and then cut:
        T = ceil(S / 40 ms).
        """
        parts = list(self.frame_probabilities_stream([waveforms]))
        return FrameProbabilities(
            torch.cat([part.values for part in parts], 1), torch.cat([p.ms for p in parts], 1)
        )

    def features(
        self, waveforms: Waveforms, taps: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Named features of each clip: {tap: [B, tap_sizes[tap]]}; default: every tap."""
        chosen = self.check_taps(self.tap_sizes if taps is None else taps)
        sizes = [self.tap_sizes[tap] for tap in chosen]
        vectors = torch.split(self._clip_vectors([waveforms], chosen), sizes, -1)
        return dict(zip(chosen, vectors, strict=True))

    def scene_stream(
        self,
        blocks: Iterable[Waveforms],
        window_ms: float = SCENE_WINDOW_MS,
        hop_ms: float = SCENE_HOP_MS,
    ) -> Tensor:
        """`scene` of audio that arrives in consecutive blocks [B, s], in bounded memory."""
        plan = scene_plan(self.sample_rate, window_ms, hop_ms)
        return self._clip_vectors(blocks, self.taps, plan)

    def tags_stream(self, blocks: Iterable[Waveforms]) -> Tensor:
        """`tags` of audio that arrives in consecutive blocks [B, s], in bounded memory."""
        return self._clip_vectors(blocks, (TAGS,))

    def timestamps_stream(
        self,
        blocks: Iterable[Waveforms],
        window_ms: float = TIMESTAMP_WINDOW_MS,
        hop_ms: float = TIMESTAMP_HOP_MS,
    ) -> Iterator[Timestamps]:
        """`timestamps` piece by piece, of audio that arrives in blocks [B, s]."""
        plan = timestamp_plan(self.sample_rate, window_ms, hop_ms)
        first = 0
        for vectors in self._window_vectors(map(check_waveforms, blocks), plan, self.taps):
            yield Timestamps(vectors, _centres(vectors, first, hop_ms))
            first += vectors.shape[1]

    def events_stream(
        self,
        blocks: Iterable[Waveforms],
        threshold: Threshold = THRESHOLD,
        median: int = MEDIAN,
        min_duration_ms: float = 0.0,
        merge_gap_ms: float = 0.0,
    ) -> list[list[Event]]:
        """`events` of audio that arrives in consecutive blocks [B, s], in bounded memory."""
        rules = EventRules.of(self.labels, threshold, median, min_duration_ms, merge_gap_ms)
        clock = self._clock(blocks)
        return find_events(self._frame_probabilities(clock), rules, clock)

    def frame_probabilities_stream(
        self, blocks: Iterable[Waveforms]
    ) -> Iterator[FrameProbabilities]:
        """`frame_probabilities` piece by piece, of audio that arrives in blocks [B, s]."""
        return self._frame_probabilities(self._clock(blocks))

    @torch.inference_mode()
    def window_features(
        self, batch: Tensor | Sequence[Tensor], taps: Iterable[str]
    ) -> dict[str, Tensor]:
        """Features of equally long windows: float32 [N, W] -> {tap: [N, size]}.

        Several [n, W] count as one after the other, and save the caller a copy.

        The one place where the network runs. Beside `tap_sizes`, "tags" names the labels'
        probabilities and, where there are frame-wise heads, "events" those of frames [N, T, size].
        """
        wanted = set(taps)
        if self.probe is not None and TAGS in wanted:
            found = self.window_features(batch, {*wanted, *self.probe.taps} - {TAGS})
            found[TAGS] = self.probe.tags(self.join(found, self.probe.taps))
            return {tap: found[tap] for tap in wanted}
        inner = {PROBABILITIES.get(tap, tap) for tap in wanted}
        groups = [batch] if isinstance(batch, Tensor) else batch
        groups = [group.to(self.device, non_blocking=True) for group in groups]
        found = self._current.runtime().features(groups, inner)
        for tap in wanted & PROBABILITIES.keys():
            found[tap] = found[PROBABILITIES[tap]].sigmoid()
        return {tap: found[tap] for tap in wanted}

    def join(self, features: dict[str, Tensor], taps: Sequence[str] | None = None) -> Tensor:
        """Concatenate named features along the last axis, in the caller's order."""
        return torch.cat([features[tap] for tap in taps or self.taps], -1)

    def _clock(self, blocks: Iterable[Waveforms]) -> Clock:
        """The blocks checked, and their duration counted."""
        return Clock(map(check_waveforms, blocks), self.sample_rate)

    def _frame_probabilities(self, clock: Clock) -> Iterator[FrameProbabilities]:
        check_detects(self.name, self.spec)
        chunks = self._window_vectors(clock, chunk_plan(self.sample_rate), (EVENTS,))
        return joined(chunks, clock)

    def _window_vectors(
        self, blocks: Iterable[Tensor], plan: Plan, taps: Sequence[str]
    ) -> Iterator[Tensor]:
        """[B, n, D] of successive groups of windows (EVENTS: [B, n, T, D]); blocks as checked."""
        for group in windows.cut(blocks, plan):
            clips, count, width = group.shape
            batches = torch.split(group.flatten(0, 1), max(1, windows.BATCH_SAMPLES // width))
            parts = [self.join(self.window_features(batch, taps), taps) for batch in batches]
            vectors = torch.cat(parts) if len(parts) > 1 else parts[0]
            yield vectors.view(clips, count, *vectors.shape[1:])

    def _clip_vectors(
        self, blocks: Iterable[Waveforms], taps: Sequence[str], plan: WindowPlan | None = None
    ) -> Tensor:
        """[B, D], the mean over the windows of each clip."""
        plan = plan or scene_plan(self.sample_rate)
        total, count = torch.zeros((), dtype=torch.float64), 0
        for vectors in self._window_vectors(map(check_waveforms, blocks), plan, taps):
            total = total + vectors.double().sum(1)
            count += vectors.shape[1]
        return (total / count).float()

    def check_taps(self, taps: Iterable[str]) -> tuple[str, ...]:
        """These features in this order; UnknownTap or BadRequest if that cannot be."""
        chosen = tuple(taps)
        for tap in chosen:
            if tap not in self.tap_sizes:
                raise UnknownTap(tap, self.tap_sizes)
        if not chosen:
            raise BadRequest("no taps named; name at least one")
        [(tap, times)] = Counter(chosen).most_common(1)
        if times > 1:
            raise BadRequest(f"tap {tap!r} is named {times} times; name each once")
        return chosen


def check_waveforms(waveforms: Waveforms) -> Tensor:
    """Any caller's audio as float32 [B, S]; BadAudio says what is wrong with it."""
    if isinstance(waveforms, np.ndarray) and not waveforms.flags.writeable:
        waveforms = waveforms.copy()  # torch cannot promise to leave it alone
    wave = torch.as_tensor(waveforms)
    if not wave.is_floating_point():
        raise BadAudio(f"waveforms are {wave.dtype}; pass floats in [-1, 1] (int16 / 32768)")
    if wave.ndim == 1:
        wave = wave[None]
    if wave.ndim != 2 or wave.numel() == 0:
        raise BadAudio(
            f"waveforms have shape {tuple(wave.shape)}; pass mono [clips, samples], not empty"
        )
    wave = wave.float()
    check_peak(max(abs(float(value)) for value in wave.aminmax()))
    return wave


def _centres(vectors: Tensor, first: int, hop_ms: float) -> Tensor:
    """Milliseconds of consecutive timestamps [B, T], exact: index times hop, in float64."""
    index = torch.arange(first, first + vectors.shape[1], dtype=torch.float64)
    return (index * hop_ms).expand(vectors.shape[0], -1).to(vectors.device)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadRequest(f"no device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadRequest(f"device {name!r} needs a CUDA card and there is none; choose cpu")
    return device
