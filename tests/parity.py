"""What three small networks make of a sound, both of which formulas make anew on any machine.

`tests/data/parity.npz` holds the answers: see tests/data/README.md.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedder.frontend import LogMel
from embedder.model import AudioEmbedder
from embedder.zoo import MEL_16K, MEL_32K, MelConfig

FILE: Final = Path(__file__).with_name("data") / "parity.npz"
# The smallest networks of each family of which the reference implementations' outputs are known.
NETWORKS: Final = ("mn01_as", "dymn04_as", "fmn04_strong")
FRONT_ENDS: Final[dict[str, MelConfig]] = {"mel_32k": MEL_32K, "mel_16k": MEL_16K}
SECONDS: Final = 2
_GAIN: Final = 2.15
_BANK_GAIN: Final = 6.1
_MEL_FRAMES: Final = 50  # enough to tell front ends apart; all of them would be 100 kB


def uniform(seed: int, count: int) -> NDArray[np.float64]:
    """Numbers in [-1, 1), equidistributed; splitmix64, so that no library's update changes them."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2**52 - 1


def sound(sample_rate: int) -> Tensor:
    """A rising tone with overtones that beats, and bursts of noise, [S] of 16-bit values."""
    n_samples = SECONDS * sample_rate
    t = np.arange(n_samples) / sample_rate
    phase = 2 * np.pi * (150 * t + 400 * t**2)  # 150 Hz to 1750 Hz
    tone = sum(np.sin(n * phase) / n for n in (1, 2, 3)) * (0.6 + 0.4 * np.sin(2 * np.pi * 5 * t))
    bursts = uniform(1, n_samples) * (np.sin(2 * np.pi * 1.5 * t) > 0.3)
    wave = np.round((0.15 * tone + 0.2 * bursts) * 32_768) / 32_768
    return torch.from_numpy(wave.astype(np.float32))


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Give every parameter and buffer values that follow from its name and shape alone.

    They are scaled so that no layer saturates or fades: answers depend on the sound.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = uniform(zlib.crc32(name.encode()), tensor.numel()).reshape(tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(_scaled(name, values)))


def _scaled(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if name.endswith("running_var"):
        return 1 + values / 2
    if values.ndim == 4 and values.shape[:2] == (1, 1) and values.shape[3] > 64:
        gain: float = _BANK_GAIN * values.shape[3] ** -0.25  # a bank of kernels, each flattened
        return values * gain
    if values.ndim >= 2:
        return values * _GAIN / math.sqrt(math.prod(values.shape[1:]))
    if name.endswith(("weight", "gamma")):
        return 1 + values / 5
    return values / 6


def filled(name: str) -> AudioEmbedder:
    """A published architecture with the weights of `fill`."""
    model = AudioEmbedder.build(name)
    fill(model.backbone)
    return model


def answers(model: AudioEmbedder, wave: Tensor) -> dict[str, Tensor]:
    """All features of a sound [S], its timestamps, and its frames where the model has any."""
    outputs = {tap: vector[0] for tap, vector in model.features(wave).items()}
    outputs["timestamps"] = model.timestamps(wave, hop_ms=250).vectors[0]
    if model.name.startswith("fmn"):
        outputs["frame_probabilities"] = model.frame_probabilities(wave).values[0]
    return outputs


def log_mel(front_end: str) -> Tensor:
    """The first frames of the sound's log-mel [M, F]."""
    config = FRONT_ENDS[front_end]
    mel: Tensor = LogMel(config)(sound(config.sample_rate)[None])
    return mel[0, :, :_MEL_FRAMES]


def stored(beginning: str) -> dict[str, NDArray[np.float32]]:
    """The arrays of the file whose names begin so, by the rest of their names."""
    with np.load(FILE) as file:
        names = [name for name in file.files if name.startswith(f"{beginning}/")]
        return {name.removeprefix(f"{beginning}/"): file[name] for name in names}
