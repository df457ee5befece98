"""Traces give what the functions give, for the shapes that they were made for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from embedder.frontend import LogMel
from embedder.runtime import tracing
from embedder.runtime.tracing import TracedLogMel, traced
from embedder.zoo import MelConfig
from tests.tensors import distance, waves

LENGTH = 8_000
CLIPS = 2


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Of all that is traced."""
    shapes: list[torch.Size] = []

    def noted(function: object, example: torch.Tensor) -> object:
        shapes.append(example.shape)
        return traced(function, example)  # type: ignore[arg-type]

    monkeypatch.setattr(tracing, "traced", noted)
    return shapes


def test_a_trace_gives_the_very_same_log_mel(shapes: list[torch.Size]) -> None:
    plain = LogMel(MelConfig())
    ours = TracedLogMel(plain, [LENGTH])
    for wave in torch.split(waves(4 * CLIPS, LENGTH), CLIPS):  # the first as it is, then as a trace
        assert torch.equal(ours(wave, CLIPS), plain(wave))
    assert shapes == [(CLIPS, LENGTH)]


def test_only_what_comes_again_and_again_is_traced(shapes: list[torch.Size]) -> None:
    plain = LogMel(MelConfig())
    ours = TracedLogMel(plain, [LENGTH])
    ours(waves(CLIPS, LENGTH), CLIPS)
    for wave in (waves(1, LENGTH), waves(CLIPS, LENGTH + 1)):
        for _ in range(3):
            assert torch.equal(ours(wave, CLIPS), plain(wave))
    assert not shapes


def test_threads_share_a_trace(shapes: list[torch.Size]) -> None:
    plain = LogMel(MelConfig())
    ours = TracedLogMel(plain, [LENGTH])
    clips = torch.split(waves(16, LENGTH), 1)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda clip: ours(clip, 1), clips))
    # Not the very same: threads may differ in how many of torch's they have.
    assert all(distance(mel, plain(clip)) < 1e-6 for mel, clip in zip(together, clips, strict=True))
    assert len(shapes) == 1


def test_no_gradients_pass() -> None:
    ours = TracedLogMel(LogMel(MelConfig()), [LENGTH])
    for _ in range(3):
        assert not ours(waves(1, LENGTH).requires_grad_(), 1).requires_grad
