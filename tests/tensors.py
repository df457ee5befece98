"""Random tensors, the same every time, and how far two tensors lie apart."""

from __future__ import annotations

import torch
from torch import Tensor


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gaussian, of deviation 1."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def waves(clips: int, samples: int, peak: float = 0.5) -> Tensor:
    """Uniform in [-peak, peak); every length sounds different."""
    generator = torch.Generator().manual_seed(samples)
    return (torch.rand(clips, samples, generator=generator) - 0.5) * (2 * peak)


def distance(ours: Tensor, reference: Tensor) -> float:
    """||ours - reference|| / ||reference||."""
    return float(torch.linalg.norm(ours - reference) / torch.linalg.norm(reference))
