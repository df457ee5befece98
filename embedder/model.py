"""Waveform to embedding on one page.

    windows ─ frontend ─ backbone ─ taps ─ mean over windows ─ embedding
    B n W     N M F      N C f t    N D    B D

`forward` is this line, by torch's modules and with gradients. `window_features` is its middle part
by the fastest engine, and `embedder.streams` has what lies around that. What may be given as audio
is in `embedder.waveforms`, the questions by their names in `embedder.clips`.

Axes: B clips, S samples, n windows a clip, N = B n, W samples a window, M mel bands, F mel frames,
C channels, f frequency, t time, T timestamps, D values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from embedder.clips import WholeClips
from embedder.describe import described
from embedder.errors import BadRequest, WeightsMismatch
from embedder.frontend import MEL, LogMel
from embedder.identity import identity
from embedder.labels import default_labels
from embedder.loading import device_of, find
from embedder.networks import BACKBONES, Backbone
from embedder.networks.frame_mn import published_names
from embedder.outputs import EVENTS, TAGS
from embedder.probe import Probe
from embedder.runtime import choose
from embedder.runtime.base import features_of, outputs_of
from embedder.runtime.lazy import LazyEngine
from embedder.streams import output_of
from embedder.waveforms import as_wave
from embedder.windows import scene_plan, timestamp_plan
from embedder.zoo import ModelSpec, lookup

__all__ = ["EVENTS", "PROBABILITIES", "TAGS", "AudioEmbedder"]

PROBABILITIES: Final = {TAGS: "logits", EVENTS: "strong"}  # name -> feature whose sigmoid it is
_REASON: Final = 1_000  # characters


class AudioEmbedder(WholeClips):
    """One loaded model. Build it with `load` (checkpoint) or `build` (random weights).

    `WholeClips` says what may be given as audio. A process that is forked (`os.fork`, DataLoader's
    workers on Linux) may use the model too: it makes an engine of its own, and computes on one
    thread, since its parent's threads do not exist there. Workers that are spawned use all.
    """

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        taps: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        probe: Probe | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.spec = spec if probe is None else replace(spec, probed=True)
        self.weights_sha256 = ""  # random weights have no hash
        self.labels: tuple[str, ...] = tuple(labels or default_labels(spec.network.n_classes))
        self.probe = probe  # gives the tags instead of the network, where there is one
        with torch.inference_mode(False):  # inference tensors have neither gradients nor versions
            self.frontend = LogMel(spec.mel)
            self.backbone: Backbone = BACKBONES[type(spec.network)](spec.network)
        self.tap_sizes: dict[str, int] = {MEL: spec.mel.n_mels, **self.backbone.tap_sizes}
        self.taps = self.check_taps(spec.taps if taps is None else taps)
        if probe is not None:
            probe.check_width(sum(self.tap_sizes[tap] for tap in self.check_taps(probe.taps)))
        self.eval().requires_grad_(False)
        usual = (scene_plan(self.sample_rate), timestamp_plan(self.sample_rate))
        lengths = tuple(plan.window for plan in usual)
        self._engine = LazyEngine(self.frontend, self.backbone, lengths)

    @classmethod
    def build(cls, name: str, taps: Sequence[str] | None = None) -> AudioEmbedder:
        """The architecture of a published model with random weights."""
        return cls(name, lookup(name), taps)

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        weights: str | os.PathLike[str] | None = None,
        taps: Sequence[str] | None = None,
        device: str | torch.device = "auto",
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
        target = device_of(device)
        choose(runtime, target)  # refused before anything is fetched
        parts = find(name, weights)
        model = cls(parts.name, parts.spec, taps, parts.labels, parts.probe)
        try:
            model.backbone.load_state_dict(published_names(parts.state), strict=True)
        except RuntimeError as error:
            reason = str(error)[:_REASON]  # which names every tensor of a hostile file
            raise WeightsMismatch(f"the checkpoint does not fit {parts.name}: {reason}") from error
        model.weights_sha256 = parts.weights_sha256
        model._engine.identify()
        model.to(target).use(runtime)
        return model

    @property
    def runtime(self) -> str:
        """Which of `embedder.runtime.CHOICES` runs the network."""
        return self._engine.choice

    def use(self, runtime: str) -> None:
        """Run the network on one of `embedder.runtime.CHOICES`, made anew from its weights.

        Changed weights show by themselves, unless they were written through `Tensor.data`:
        after that, `model.use(model.runtime)` makes them show.
        """
        self._engine.choice = choose(runtime, self.device)
        self._engine.renew()

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
        """The device on which the model computes."""
        return self.frontend.bank.device

    @property
    def engine(self) -> str:
        """The name of what runs the network, as far as it decides the numbers."""
        return self._engine.engine().name

    @property
    def identity(self) -> dict[str, str]:
        """All that decides the numbers, by name: with an `Output.key`, the key of any cache."""
        return identity(self)

    def forward(self, waves: Tensor) -> Tensor:
        """Scene embeddings of waveforms float32 [B, S]: [B, D], with gradients.

        Gradients pass to those waveforms and weights that require them. The values are those of
        `scene`, computed by the torch modules themselves, in training mode too.
        """
        as_wave(waves)  # refuses other shapes and types
        blocks = [waves.to(self.device).float().reshape(-1, waves.shape[-1])]
        return self._mean(blocks, output_of(self, "embedding"), self._module_features)

    def _module_features(self, windows: Tensor, taps: Iterable[str]) -> dict[str, Tensor]:
        """What `window_features` gives, by torch's modules: [N, W] -> {tap: [N, size]}."""
        run = partial(outputs_of, self.backbone)
        return features_of(self.frontend(windows), tuple(taps), run)

    @torch.inference_mode()
    def window_features(
        self, batch: Tensor | Sequence[Tensor], taps: Iterable[str]
    ) -> dict[str, Tensor]:
        """Features of equally long windows: float32 [N, W] -> {tap: [N, size]}.

        A list of [n, W] stands for all of them, one after the other, and saves the caller a copy.

        Nothing else runs the engine. Beside `tap_sizes`, "tags" names the labels' probabilities
        and, where there are frame-wise heads, "events" those of frames [N, T, size].
        """
        names = set(taps)
        if self.probe is not None and TAGS in names:
            features = self.window_features(batch, {*names, *self.probe.taps} - {TAGS})
            features[TAGS] = self.probe.tags(self.join(features, self.probe.taps))
            return {name: features[name] for name in names}
        inner = {PROBABILITIES.get(name, name) for name in names}
        groups = [batch] if isinstance(batch, Tensor) else batch
        groups = [group.to(self.device, non_blocking=True) for group in groups]
        features = self._engine.engine().features(groups, inner)
        for name in names & PROBABILITIES.keys():
            features[name] = features[PROBABILITIES[name]].sigmoid()
        return {name: features[name] for name in names}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AudioEmbedder:
        """Apply what `to`, `half`, `cuda` and the like do to every tensor, after a try with one."""
        try:
            dtype = fn(torch.zeros(1, dtype=torch.float32)).dtype
        except (AssertionError, RuntimeError) as error:
            raise BadRequest(f"the model cannot be moved there: {error}") from error
        if dtype != torch.float32:
            raise BadRequest(
                f"weights stay float32, not {str(dtype).removeprefix('torch.')}; engines compute "
                "in less: load with runtime='openvino-bf16' on a CPU, or runtime='cuda' (float16)"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __repr__(self) -> str:
        parameters = sum(value.numel() for value in self.backbone.parameters())
        runs_on = f"{self.device}, {self.runtime}"
        return described(self, self.weights_sha256, parameters, runs_on)
