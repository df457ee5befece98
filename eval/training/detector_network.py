"""The network that the training of a detector starts from (arXiv 2503.11373, IV-B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from embedder.defaults import FRAME_MS
from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from embedder.zoo import FrameMNConfig, MNConfig, SequenceName

MEL_FRAMES: Final = 4  # mel frames make one frame of the detector
DIM: Final = 256  # dimension of the sequence model at width 1


def detector_of(
    base: AudioEmbedder,
    labels: Sequence[str],
    sequence: SequenceName | None = None,
    dim: int | None = None,
    seed: int = 0,
) -> AudioEmbedder:
    """Make a frame-wise MN for these labels that starts from the weights of `base`.

    From an MN it takes the front end and the backbone (as the paper does from an MN trained on
    ImageNet). From a frame-wise MN it also takes the sequence model, if `sequence` is None or of
    the same kind, and the heads, if the labels are the same. All else is random.

    Parameters
    ----------
    sequence : kind of the sequence model; None keeps that of `base`, which may be none.
    dim : dimension of the sequence model; default: that of `base`, or `sequence_dim`.
    """
    spec = replace(base.spec, weights="", url="", sha256=None, mean_ap=None, psds1=None)
    spec = replace(spec, network=_frame_network(base, sequence, dim, len(labels)))
    torch.manual_seed(seed)
    model = AudioEmbedder(base.name, spec, base.taps, labels)
    old_state, state = _frame_state(base), model.backbone.state_dict()
    heads = ("strong_head.", "weak_head.")
    kept = {
        name: tensor
        for name, tensor in old_state.items()
        if name in state
        and tensor.shape == state[name].shape
        and (base.labels == tuple(labels) or not name.startswith(heads))
    }
    if lost := [name for name in state if name.startswith("model.") and name not in kept]:
        raise BadRequest(f"the backbone of {base.name} does not fit a frame-wise MN: {lost[0]}")
    model.backbone.load_state_dict(state | kept)
    return model.to(base.device)


def _frame_network(
    base: AudioEmbedder, sequence: SequenceName | None, dim: int | None, classes: int
) -> FrameMNConfig:
    """Return the network of `detector_of`; BadRequest if `base` cannot be its start."""
    network, mel = base.spec.network, base.spec.mel
    if not isinstance(network, MNConfig | FrameMNConfig):
        raise BadRequest(f"{base.name} is no MN; a detector starts from an MN or a frame-wise one")
    if MEL_FRAMES * mel.hop * 1000 != FRAME_MS * mel.sample_rate:
        raise BadRequest(f"{base.name} does not hop by {FRAME_MS // MEL_FRAMES} ms; choose another")
    if isinstance(network, FrameMNConfig) and sequence in (None, network.sequence):
        return replace(network, dim=dim or network.dim, n_classes=classes)
    return FrameMNConfig(network.width, sequence, dim or sequence_dim(network.width), classes)


def sequence_dim(width: float) -> int:
    """Return the sequence model's dimension for a backbone of this width, a multiple of 8."""
    return -(-round(DIM * width) // 8) * 8


def _frame_state(base: AudioEmbedder) -> dict[str, Tensor]:
    """Return a backbone's weights under the names that a frame-wise MN has for them."""
    state: dict[str, Tensor] = base.backbone.state_dict()
    if isinstance(base.spec.network, FrameMNConfig):
        return state
    return {f"model.fmn.{name}": tensor for name, tensor in state.items()}
