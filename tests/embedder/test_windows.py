"""Windows of streams are those of the whole clip, however it arrives."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedder.errors import BadAudio, BadRequest
from embedder.frontend import reflect_pad
from embedder.windows import WindowPlan, cut, scene_plan, timestamp_plan


def windows_of_whole_clip(clip: Tensor, plan: WindowPlan) -> Tensor:
    """The definition: mirror, then slice."""
    samples = clip.shape[1]
    if plan.whole_clips and samples <= plan.window:
        return clip[:, None]
    left = plan.window // 2
    right = plan.window - left
    padded = reflect_pad(clip, right)[:, right - left :]
    starts = [round(i * plan.hop) for i in range(int(samples // plan.hop) + 1)]
    return torch.stack([padded[:, s : s + plan.window] for s in starts], 1)


@settings(deadline=None)
@given(
    samples=st.integers(1, 300),
    plan=st.builds(
        WindowPlan,
        window=st.integers(1, 80),
        hop=st.one_of(st.integers(1, 90).map(float), st.floats(1, 60)),
        whole_clips=st.booleans(),
    ),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    batch_samples=st.sampled_from([1, 200, 10**6]),
)
def test_streamed_windows_equal_sliced_ones(
    samples: int, plan: WindowPlan, cuts: list[int], batch_samples: int
) -> None:
    clip = torch.arange(2.0 * samples).view(2, samples)
    edges = [0, *sorted(min(c, samples) for c in cuts), samples]
    blocks = [clip[:, a:b] for a, b in pairwise(edges)]
    ours = torch.cat(list(cut(blocks, plan, batch_samples)), 1)
    assert torch.equal(ours, windows_of_whole_clip(clip, plan))
    assert ours.shape[1] == plan.n_windows(samples)


def test_long_streams_hold_about_one_batch() -> None:
    plan = timestamp_plan(1_000)
    largest = max(
        batch.numel()
        for batch in cut((torch.zeros(1, 5_000) for _ in range(50)), plan, batch_samples=16_000)
    )
    assert largest <= 16_000


@pytest.mark.parametrize("samples", [1, 2, 3, 50, 511, 512, 513, 2_000])
def test_reflection_goes_on_where_torch_gives_up(samples: int) -> None:
    clip = torch.randn(2, samples)
    expected = torch.from_numpy(np.pad(clip.numpy(), ((0, 0), (512, 512)), "reflect"))
    assert torch.equal(reflect_pad(clip, 512), expected)


def test_empty_streams_are_refused() -> None:
    for blocks in ([], [torch.zeros(1, 0)]):
        with pytest.raises(BadAudio, match="no samples"):
            list(cut(blocks, scene_plan(32_000)))


@pytest.mark.parametrize(("window_ms", "hop_ms"), [(0.0, 50.0), (160.0, 0.0), (1e9, 50.0)])
def test_senseless_windows_are_refused(window_ms: float, hop_ms: float) -> None:
    with pytest.raises(BadRequest, match="milliseconds"):
        timestamp_plan(32_000, window_ms, hop_ms)
