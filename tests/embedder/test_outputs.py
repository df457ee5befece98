"""Outputs promise shapes, rows and centres, and keep their word however features come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedder.errors import BadRequest
from embedder.outputs import EVENTS, TAGS, Mean, Output
from embedder.waveforms import Clock

RATE = 1_000
SCENE = Output.of("embedding", "scene", RATE, ("mel", "b5"))
ROWS = Output.of("embedding", "timestamps", RATE, ("mel",), 100, 40)
TAG_ROWS = Output.of("tags", "timestamps", RATE, ())
EVENT_ROWS = Output.of("events", "timestamps", RATE, ())
FRAMES = 250  # of a window of events


def test_the_usual_windows_are_filled_in() -> None:
    assert (SCENE.window_ms, SCENE.hop_ms) == (10_000, 2_500)
    usual = Output.of("embedding", "timestamps", RATE, ("mel",))
    assert (usual.window_ms, usual.hop_ms) == (160, 50)
    assert (TAG_ROWS.window_ms, TAG_ROWS.taps) == (10_000, (TAGS,))
    assert (EVENT_ROWS.hop_ms, EVENT_ROWS.taps) == (40, (EVENTS,))


@pytest.mark.parametrize("name", ["embedding", "tags"])
@pytest.mark.parametrize("windows", [(0, None), (None, 0), (0.5, None), (None, float("nan"))])
def test_zero_is_no_default(name: Any, windows: tuple[float | None, float | None]) -> None:
    with pytest.raises(BadRequest, match="milliseconds"):
        Output.of(name, "scene", RATE, ("mel",), *windows)


@pytest.mark.parametrize(
    "other",
    [
        Output.of("embedding", "timestamps", RATE, ("mel", "b5"), 10_000, 2_500),
        Output.of("embedding", "scene", RATE, ("b5", "mel")),
        Output.of("embedding", "scene", RATE, ("mel,b5",)),
        Output.of("embedding", "scene", RATE, ("mel", "b5"), 9_999),
        Output.of("embedding", "scene", RATE, ("mel", "b5"), hop_ms=2_501),
        Output.of("tags", "scene", RATE, ()),
        Output.of("embedding", "scene", 2 * RATE, ("mel", "b5")),
    ],
)
def test_whatever_is_asked_otherwise_has_another_key(other: Output) -> None:
    assert other.key() != SCENE.key()
    assert other != SCENE


def test_numbers_that_are_equal_have_one_key() -> None:
    whole = Output.of("embedding", "scene", RATE, ("mel", "b5"), 10_000, 2_500)
    assert repr(whole.key()) == repr(SCENE.key())
    assert hash(replace(SCENE)) == hash(SCENE)


def features_of(output: Output, samples: int) -> Tensor:
    """Random features [1, n, D], or of frames [1, n, t, D], of all windows of a clip."""
    inside = (FRAMES, 3) if output.name == "events" else (3,)
    return torch.rand(1, output.n_windows(samples), *inside)


@settings(deadline=None)
@given(
    samples=st.integers(1, 40_000),
    step=st.integers(1, 5),
    output=st.sampled_from([SCENE, ROWS, TAG_ROWS, EVENT_ROWS]),
)
def test_values_have_the_promised_shape_however_they_come(
    samples: int, step: int, output: Output
) -> None:
    output = replace(output, taps=output.taps[:1])
    whole = features_of(output, samples)
    groups = torch.split(whole, step, 1)
    collector = output.collector(samples)
    for group in groups:
        collector.push(group[0].numpy())
    values = collector.finish()
    assert values.shape == output.shape(samples, {"mel": 3}, 3)
    assert values.dtype == np.float32
    if output.kind == "scene":
        mean: Mean[Tensor] = Mean()
        for group in groups:
            mean.push(group)
        np.testing.assert_allclose(mean.finish()[0], values, rtol=1e-6)
        np.testing.assert_allclose(values, whole[0].mean(0), rtol=1e-5)
        return
    clock = Clock([torch.zeros(1, samples)])
    assert list(clock)
    pieces = list(output.pieces(groups, clock))
    assert np.array_equal(torch.cat([piece.vectors for piece in pieces], 1)[0], values)
    ms = torch.cat([piece.ms for piece in pieces], 1)[0]
    assert np.array_equal(ms, output.centres_ms(samples))
    assert len(ms) == output.n_rows(samples)


def test_centres_do_not_drift() -> None:
    odd = Output.of("embedding", "timestamps", RATE, ("mel",), 100, 33.3)
    ms = odd.centres_ms(3_600_000)
    assert ms[100_000] == 100_000 * 33.3
    assert TAG_ROWS.centres_ms(4_000).tolist() == [2_000]
    assert EVENT_ROWS.centres_ms(81).tolist() == [20, 60, 100]


def test_events_have_their_own_windows() -> None:
    with pytest.raises(BadRequest, match="leave window_ms and hop_ms out"):
        Output.of("events", "timestamps", RATE, (), window_ms=5_000)
    with pytest.raises(BadRequest, match="no output events scene; choose one of embedding scene,"):
        Output.of("events", "scene", RATE, ())
