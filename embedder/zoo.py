"""The zoo: log-mel conventions, architectures, and the published models, a row for each.

A model's name is looked up here, never parsed. Figures are those stated by the papers
(arXiv 2303.01879, 2211.04772, 2310.15648, 2503.11373) and by the releases of the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from embedder.errors import UnknownModel

Head = Literal["mlp", "fully_convolutional", "multihead_attention_pooling"]
SequenceName = Literal["tf", "attn", "gru", "tcn", "hybrid", "mamba"]


@dataclass(frozen=True, slots=True)
class MelConfig:
    """A log-mel front end: all that decides a spectrogram's numbers.

    Times are in samples, frequencies in hertz. `floor` is the smallest mel power, applied
    before the logarithm as `floor_mode` says: added to the power, or as its lower bound.
    """

    sample_rate: int = 32_000
    window: int = 800
    hop: int = 320
    n_fft: int = 1024
    n_mels: int = 128
    fmin: float = 0.0
    fmax: float = 15_000.0
    floor: float = 1e-5
    floor_mode: Literal["add", "clamp"] = "add"


@dataclass(frozen=True, slots=True)
class MNConfig:
    """A width-scaled MobileNetV3-Large (arXiv 2303.01879, Table I).

    `strides` are those of the four down-sampling blocks (B2, B4, B7, B13); `dilation` and
    `reduced_tail` act on the last three blocks, as in torchvision's MobileNetV3.
    """

    width: float = 1.0
    head: Head = "mlp"
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    dilation: int = 1
    reduced_tail: bool = False
    n_classes: int = 527


@dataclass(frozen=True, slots=True)
class DyMNConfig:
    """A width-scaled dynamic MobileNet (arXiv 2310.15648); defaults are the published model.

    `placement` says which blocks are dynamic: all, those that have squeeze-and-excitation in
    MN, or five of the fifteen (Table III). Each of the three switches removes a dynamic component
    (Table II). `kernels` is K, `mappings` is M, and the context size is `expanded / reduction`,
    kept between `min_context` and `max_context` times the width (Tables VII, IX, XI).
    `temperature` is the kernel attention's; training changes it (Table VIII).
    """

    width: float = 1.0
    placement: Literal["all", "replace_se", "first", "middle", "last"] = "all"
    coordinate_attention: bool = True
    dynamic_relu: bool = True
    dynamic_conv: bool = True
    kernels: int = 4
    mappings: int = 2
    reduction: int = 4
    min_context: int = 32
    max_context: int = 128
    temperature: float = 1.0
    n_classes: int = 527


@dataclass(frozen=True, slots=True)
class FrameMNConfig:
    """A frame-wise MN and, unless `sequence` is None, a sequence model (arXiv 2503.11373).

    `dim` is the sequence model's dimension; without a sequence model it has no effect.
    """

    width: float = 1.0
    sequence: SequenceName | None = None
    dim: int = 256
    n_classes: int = 447


NetworkConfig = MNConfig | DyMNConfig | FrameMNConfig


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """All it takes to rebuild one published model, and what was published about it.

    `params` are parameters in millions, `macs` multiply-accumulates in billions for 10 s of audio,
    `mean_ap` is AudioSet mAP and `psds1` AudioSet Strong PSDS1, in percent; None where nothing was
    stated.
    """

    network: NetworkConfig
    mel: MelConfig
    weights: str
    url: str = ""  # empty: the weights are package data
    sha256: str | None = None
    params: float | None = None
    macs: float | None = None
    mean_ap: float | None = None
    psds1: float | None = None
    # The default taps: low-level mel means, then blocks in the middle (arXiv 2303.01879, Table II,
    # "M_B + L").
    taps: tuple[str, ...] = ("mel", "b5", "b11", "b13", "b15")
    probed: bool = False  # whether a probe gives the tags; see embedder/probe.py

    @property
    def bundled(self) -> bool:
        """Whether the weights are package data."""
        return not self.url


MEL_32K: Final = MelConfig()
MEL_16K: Final = MelConfig(
    sample_rate=16_000,
    window=400,
    hop=160,
    n_fft=512,
    fmax=7_000.0,
    floor=1e-7,
    floor_mode="clamp",
)

_EFFICIENT_AT: Final = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
_EFFICIENT_SED: Final = "https://github.com/theMoro/EfficientSED/releases/download/v0.0.1/"


def _mn(
    weights: str,
    network: MNConfig | DyMNConfig,
    figures: tuple[float | None, float | None, float | None],
    mel: MelConfig = MEL_32K,
    sha256: str | None = None,
) -> ModelSpec:
    params, macs, mean_ap = figures
    return ModelSpec(
        network=network,
        mel=mel,
        weights=f"{weights}.pt",
        url=f"{_EFFICIENT_AT}{weights}.pt",
        sha256=sha256,
        params=params,
        macs=macs,
        mean_ap=mean_ap,
    )


def _hop(milliseconds: int) -> MelConfig:
    return replace(MEL_32K, hop=MEL_32K.sample_rate * milliseconds // 1000)


def _bands(n_mels: int) -> MelConfig:
    return replace(MEL_32K, n_mels=n_mels)


def _imagenet(width: float) -> MNConfig:
    return MNConfig(width, n_classes=1000)


def _frame_rows() -> Iterator[tuple[str, ModelSpec]]:
    """Every published frame-wise MN, alone and with its sequence models."""
    # Published dimensions, and AudioSet mAP after weak training (arXiv 2503.11373, section III-B).
    widths = {
        0.4: ((104,), 42.0),
        0.6: ((160,), 43.7),
        1.0: ((128, 256, 512, 1024), 45.8),
        2.0: ((512,), 47.4),
        3.0: ((768,), 47.5),
    }
    psds1 = {"fmn10_strong": 42.28, "fmn10+tf-256_strong": 43.86, "fmn10+hybrid-128_strong": 43.45}
    kinds: tuple[SequenceName, ...] = ("tf", "gru", "hybrid")
    for width, (dims, mean_ap) in widths.items():
        alone = f"fmn{round(10 * width):02d}"
        yield _fmn(f"{alone}_weak", FrameMNConfig(width, n_classes=527), mean_ap=mean_ap)
        rows = {f"{alone}_strong": FrameMNConfig(width)} | {
            f"{alone}+{kind}-{dim}_strong": FrameMNConfig(width, kind, dim)
            for kind in kinds
            for dim in dims
        }
        yield from (_fmn(name, network, psds1.get(name)) for name, network in rows.items())
    yield _fmn("fmn10+tf-256_advanced-kd-weak-strong", FrameMNConfig(1.0, "tf", 256), 45.25)


def _fmn(
    name: str, network: FrameMNConfig, psds1: float | None = None, mean_ap: float | None = None
) -> tuple[str, ModelSpec]:
    weights = f"{name}.pt"
    url = f"{_EFFICIENT_SED}{weights}"
    return name, ModelSpec(network, MEL_16K, weights, url, mean_ap=mean_ap, psds1=psds1)


_FC: Final[Head] = "fully_convolutional"
_MN10: Final = MNConfig()
_MN04_SHA256: Final = "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c"

# fmt: off
MODELS: Final[Mapping[str, ModelSpec]] = MappingProxyType({
    # Ours, distilled from mn04_as on freely licensed sound and part of the package
    # (docs/model_card.md); all others are published and downloaded.
    "sprout04": ModelSpec(MNConfig(0.4), MEL_32K, "sprout04.safetensors", params=0.983, macs=0.11),
    #                  checkpoint              network           params  MACs  mAP
    "mn01_as":         _mn("mn01_as_mAP_298",      MNConfig(0.1),   (0.12, 0.02, 29.8)),
    "mn02_as":         _mn("mn02_as_mAP_378",      MNConfig(0.2),   (0.27, None, 37.8)),
    "mn04_as":         _mn("mn04_as_mAP_432",      MNConfig(0.4),   (0.983, 0.11, 43.2),
                         sha256=_MN04_SHA256),
    "mn05_as":         _mn("mn05_as_mAP_443",      MNConfig(0.5),   (1.43, 0.16, 44.3)),
    "mn10_as":         _mn("mn10_as_mAP_471",      _MN10,           (4.88, 0.54, 47.1)),
    "mn20_as":         _mn("mn20_as_mAP_478",      MNConfig(2.0),   (17.91, 2.06, 47.8)),
    "mn30_as":         _mn("mn30_as_mAP_482",      MNConfig(3.0),   (39.09, 4.55, 48.2)),
    "mn40_as":         _mn("mn40_as_mAP_484",      MNConfig(4.0),   (68.43, 8.03, 48.4)),
    "mn40_as_ext":     _mn("mn40_as_ext_mAP_487",  MNConfig(4.0),   (68.43, 8.03, 48.7)),
    "mn40_as_no_im_pre": _mn("mn40_as_no_im_pre_mAP_483", MNConfig(4.0), (68.43, 8.03, 48.3)),
    "mn10_as_hop_5":    _mn("mn10_as_hop_5_mAP_475",    _MN10, (4.88, None, 47.5), mel=_hop(5)),
    "mn10_as_hop_15":   _mn("mn10_as_hop_15_mAP_463",   _MN10, (4.88, None, 46.3), mel=_hop(15)),
    "mn10_as_hop_20":   _mn("mn10_as_hop_20_mAP_456",   _MN10, (4.88, None, 45.6), mel=_hop(20)),
    "mn10_as_hop_25":   _mn("mn10_as_hop_25_mAP_447",   _MN10, (4.88, None, 44.7), mel=_hop(25)),
    "mn10_as_mels_40":  _mn("mn10_as_mels_40_mAP_453",  _MN10, (4.88, None, 45.3), mel=_bands(40)),
    "mn10_as_mels_64":  _mn("mn10_as_mels_64_mAP_461",  _MN10, (4.88, None, 46.1), mel=_bands(64)),
    "mn10_as_mels_256": _mn("mn10_as_mels_256_mAP_474", _MN10, (4.88, None, 47.4), mel=_bands(256)),
    "mn10_as_fc":       _mn("mn10_as_fc_mAP_465", MNConfig(head=_FC), (None, None, 46.5)),
    "mn10_as_fc_s2221": _mn("mn10_as_fc_s2221_mAP_466", MNConfig(head=_FC, strides=(2, 2, 2, 1)),
                            (None, None, 46.6)),
    "mn10_as_fc_s2211": _mn("mn10_as_fc_s2211_mAP_466", MNConfig(head=_FC, strides=(2, 2, 1, 1)),
                            (None, None, 46.6)),
    "dymn04_as":       _mn("dymn04_as",            DyMNConfig(0.4), (1.97, 0.12, 45.0)),
    "dymn10_as":       _mn("dymn10_as",            DyMNConfig(1.0), (10.57, 0.58, 47.7)),
    "dymn20_as":       _mn("dymn20_as_mAP_493",    DyMNConfig(2.0), (40.02, 2.2, 49.3)),
    "dymn20_as_mAP_489": _mn("dymn20_as_mAP_489",  DyMNConfig(2.0), (40.02, 2.2, 48.9)),
    **dict(_frame_rows()),
    # Starting points for training, from ImageNet: their 1000 outputs name no sounds.
    "mn01_im":         _mn("mn01_im",              _imagenet(0.1),  (None, None, None)),
    "mn02_im":         _mn("mn02_im",              _imagenet(0.2),  (None, None, None)),
    "mn04_im":         _mn("mn04_im",              _imagenet(0.4),  (None, None, None)),
    "mn05_im":         _mn("mn05_im",              _imagenet(0.5),  (None, None, None)),
    "mn10_im":         _mn("mn10_im",              _imagenet(1.0),  (None, None, None)),
    "mn20_im":         _mn("mn20_im",              _imagenet(2.0),  (None, None, None)),
    "mn30_im":         _mn("mn30_im",              _imagenet(3.0),  (None, None, None)),
    "mn40_im":         _mn("mn40_im",              _imagenet(4.0),  (None, None, None)),
})
# fmt: on


def lookup(name: str) -> ModelSpec:
    """The row of a model; UnknownModel, which lists the nearest names, if there is none."""
    try:
        return MODELS[name]
    except KeyError:
        raise UnknownModel(name, MODELS) from None
