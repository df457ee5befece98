"""Events: from known probabilities exactly, of any length, alone, batched and streamed alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedder import checkpoints
from embedder.checkpoints import WEIGHTS_DIR_VARIABLE
from embedder.defaults import DEFAULT_DETECTOR
from embedder.errors import BadAudio, BadRequest, DownloadFailed
from embedder.events.finder import (
    Event,
    EventFinder,
    EventRules,
    MedianFilter,
    in_order,
)
from embedder.events.frames import detectors, n_frames
from embedder.labels import strong_labels
from embedder.model import EVENTS, AudioEmbedder
from embedder.outputs import Timestamps
from embedder.zoo import MODELS
from tests import golden
from tests.detector_kit import NAME, RATE, bursts, lively_detector
from tests.shared import needs_shared

Track = NDArray[np.float32]
LABELS = ("dog", "cat", "rain")


@pytest.fixture(scope="module")
def model() -> Iterator[AudioEmbedder]:
    with lively_detector() as built:
        yield built


def tracks(**lists: list[float]) -> Track:
    """Frames [T, 3] from a list of probabilities a label; those not named are silent."""
    length = max(map(len, lists.values()))
    return np.array([lists.get(label, [0.0] * length) for label in LABELS], np.float32).T


def found(frames: Track, pieces: int, rules: EventRules, seconds: float = 1e9) -> list[Event]:
    """The events of frames that come in pieces."""
    finder = EventFinder(rules)
    events = [e for part in np.array_split(frames, pieces) for e in finder.push(part)]
    return in_order(events + finder.finish(seconds))


def rules(median: int = 1, shortest: float = 0.0, gap: float = 0.0) -> EventRules:
    return EventRules.of(LABELS, 0.5, median, shortest, gap)


def by_hand(frames: Track, rule: EventRules) -> list[Event]:
    """The same by the definition, a frame at a time, of the whole."""
    half = rule.median // 2
    padded = np.pad(frames, ((half, half), (0, 0)), mode="symmetric")
    smooth = np.array([np.median(padded[t : t + rule.median], axis=0) for t in range(len(frames))])
    events = []
    for index, label in enumerate(rule.labels):
        runs: list[list[int]] = []
        for t in np.flatnonzero(smooth[:, index] >= rule.thresholds[index]).tolist():
            if runs and (t - runs[-1][1]) * 40 <= rule.merge_gap_ms:
                runs[-1][1] = t + 1
            else:
                runs.append([t, t + 1])
        events += [
            Event(label, a * 40 / 1000, b * 40 / 1000, float(smooth[a:b, index].max()))
            for a, b in runs
            if (b - a) * 40 >= rule.min_duration_ms
        ]
    return in_order(events)


# As float32 holds them.
LIKELY, LESS_LIKELY = float(np.float32(0.9)), float(np.float32(0.6))


def test_known_tracks_give_known_events() -> None:
    frames = tracks(dog=[0.1, 0.5, 0.9, 0.2, 0.6], rain=[1, 1, 0.4, 0, 0])
    dog, late, rain = (
        Event("dog", 0.04, 0.12, LIKELY),
        Event("dog", 0.16, 0.19, LESS_LIKELY),
        Event("rain", 0.0, 0.08, 1.0),
    )
    assert found(frames, 1, rules(), seconds=0.19) == [rain, dog, late]
    joined = Event("dog", 0.04, 0.19, LIKELY)
    assert found(frames, 2, rules(gap=40), seconds=0.19) == [rain, joined]
    assert found(frames, 3, rules(shortest=80), seconds=0.19) == [rain, dog]
    assert found(frames, 2, rules(shortest=160, gap=40), seconds=0.19) == [joined]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_tracks_in_any_pieces(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 60))
    levels = data.draw(st.lists(st.integers(0, 9), min_size=3 * length, max_size=3 * length))
    frames = np.array(levels, np.float32).reshape(length, 3) / np.float32(9)
    rule = rules(
        data.draw(st.sampled_from([1, 3, 9, 15])),
        data.draw(st.sampled_from([0.0, 40.0, 81.0])),
        data.draw(st.sampled_from([0.0, 39.0, 40.0, 100.0])),
    )
    assert found(frames, data.draw(st.integers(1, 12)), rule) == by_hand(frames, rule)


@pytest.mark.parametrize("width", [1, 3, 9])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 9, 40])
def test_the_filter_is_the_mirrored_median(width: int, length: int) -> None:
    frames = np.random.default_rng(0).random((length, 2), np.float32)
    padded = np.pad(frames, ((width // 2, width // 2), (0, 0)), mode="symmetric")
    expected = [np.median(padded[t : t + width], axis=0) for t in range(length)]
    for pieces in (1, 2, 7):
        smooth = MedianFilter(width)
        parts = [smooth.push(part) for part in np.array_split(frames, pieces)]
        np.testing.assert_array_equal(np.concatenate([*parts, smooth.finish()]), expected)


@pytest.mark.parametrize("width", [1, 3, 9])
def test_medians_below_the_floor_are_not_computed(width: int) -> None:
    frames = np.random.default_rng(width).random((50, 3), dtype=np.float32)
    floor = np.array([0.3, 0.6, 2.0])
    full, floored = MedianFilter(width), MedianFilter(width, floor)
    expected = np.concatenate([full.push(frames), full.finish()])
    some = np.concatenate([floored.push(frames[:20]), floored.push(frames[20:]), floored.finish()])
    reached = expected >= floor
    np.testing.assert_array_equal(some, np.where(reached, expected, 0))
    assert floored.compared == reached.sum() * width < full.compared == 50 * 3 * width


def test_thresholds_for_one_for_each_and_by_label() -> None:
    frames = tracks(dog=[0.6], cat=[0.6], rain=[0.6])

    def heard(threshold: float | list[float] | dict[str, float]) -> list[str]:
        rule = EventRules.of(LABELS, threshold, median=1)
        return [event.label for event in found(frames, 1, rule)]

    assert heard(0.6) == sorted(LABELS)
    assert heard(0.61) == []
    assert heard([0.7, 0.5, 0.7]) == ["cat"]
    assert heard({"rain": 0.2, "dog": 0.9}) == ["rain"]


@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan"), [0.5], {"bird": 0.5}, {"dog": 2.0}])
def test_thresholds_that_make_no_sense(threshold: float | list[float] | dict[str, float]) -> None:
    with pytest.raises(BadRequest):
        EventRules.of(LABELS, threshold)


@pytest.mark.parametrize(("median", "shortest", "gap"), [(2, 0, 0), (0, 0, 0), (9, -1, 0)])
def test_rules_that_make_no_sense(median: int, shortest: float, gap: float) -> None:
    with pytest.raises(BadRequest):
        rules(median, shortest, gap)
    with pytest.raises(BadRequest):
        rules(9, 0, float("inf"))


@pytest.mark.parametrize("seconds", [1 / RATE, 0.05, 3.0, 10.0, 25.0])
def test_audio_of_any_length(model: AudioEmbedder, seconds: float) -> None:
    wave = bursts(seconds)[None]
    values, ms = model.frame_probabilities(wave)
    count = -(-wave.shape[1] // 640)
    assert (values.shape, ms.shape) == ((1, count, 447), (1, count))
    assert ms[0].tolist() == [20.0 + 40 * t for t in range(count)]
    assert 0 <= float(values.min()) <= float(values.max()) <= 1
    [events] = model.events(wave)
    assert events == found(values[0].numpy(), 1, EventRules.of(model.labels), seconds)
    assert all(0 <= e.onset_s < e.offset_s <= seconds for e in events)
    assert model.scene(wave).shape == (1, model.scene_embedding_size)
    assert model.timestamps(wave).vectors.shape[1] == int(seconds * 20) + 1


@needs_shared
def test_probabilities_are_the_references() -> None:
    seeded = AudioEmbedder.build(NAME)
    seeded.backbone.load_state_dict(golden.seeded_state("fmn04"))
    expected = golden.arrays("fmn04_seeded")
    for clip in golden.CLIPS:
        wave = golden.clip(clip, RATE)[: 10 * RATE]  # filled to 10 s, as the reference does
        logits = torch.from_numpy(expected[f"{clip}/strong_logits"]).float()  # N T
        values = seeded.frame_probabilities(wave).values[0]
        reference = logits.sigmoid().mT[: len(values)]
        assert len(values) == n_frames(len(wave), RATE)
        assert torch.linalg.norm(values - reference) / torch.linalg.norm(reference) <= 5e-3


def test_long_audio_is_heard_in_chunks_of_10_s(model: AudioEmbedder) -> None:
    wave = bursts(25.0, seed=1)
    values = model.frame_probabilities(wave).values[0]
    chunks = functional.pad(wave, (0, 5 * RATE)).view(3, -1)
    alone = [model.window_features(chunk[None], [EVENTS])[EVENTS][0] for chunk in chunks]
    expected = torch.cat(alone)[:625]
    assert torch.linalg.norm(values - expected) / torch.linalg.norm(expected) <= 1e-5


def test_alone_batched_and_streamed_agree(model: AudioEmbedder) -> None:
    waves = torch.stack([bursts(21.0, seed) for seed in range(3)])
    batched = model.frame_probabilities(waves).values
    alone = torch.cat([model.frame_probabilities(wave).values for wave in waves])
    streamed = list(model.frame_probabilities_stream(torch.split(waves, 12_345, 1)))
    assert float((alone - batched).abs().max()) <= 1e-5
    joined = torch.cat([part.values for part in streamed], 1)
    assert float((joined - batched).abs().max()) <= 1e-5
    assert torch.cat([part.ms for part in streamed], 1).equal(model.frame_probabilities(waves).ms)
    events = model.events(waves, threshold=0.6, median=5, merge_gap_ms=80)
    assert sum(map(len, events)) > 100
    blocks = torch.split(waves, 50_001, 1)
    again = model.events_stream(blocks, threshold=0.6, median=5, merge_gap_ms=80)
    spans = [[(e.label, e.onset_s, e.offset_s) for e in clip] for clip in events]
    assert spans == [[(e.label, e.onset_s, e.offset_s) for e in clip] for clip in again]


def test_a_stream_is_heard_while_it_lasts(
    model: AudioEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: AudioEmbedder, batch: Tensor, taps: object) -> dict[str, Tensor]:
        assert taps == (EVENTS,)
        return {EVENTS: batch.new_zeros(len(batch), 250, len(self.labels))}

    monkeypatch.setattr(AudioEmbedder, "window_features", silent)
    read: list[int] = []

    def endless() -> Iterator[NDArray[np.float32]]:
        while True:
            read.append(10 * RATE)
            yield np.zeros(10 * RATE, np.float32)

    first = next(model.frame_probabilities_stream(endless()))
    assert isinstance(first, Timestamps)
    assert n_frames(sum(read), RATE) == first.values.shape[1] <= 16 * 250


def test_empty_and_broken_audio_is_refused(model: AudioEmbedder) -> None:
    with pytest.raises(BadAudio):
        model.events_stream([])
    with pytest.raises(BadAudio):
        model.events(np.full(100, np.nan, np.float32))


def test_a_model_without_frames_names_those_with() -> None:
    tagger = AudioEmbedder.build("mn01_as")
    for ask in (tagger.events, tagger.frame_probabilities):
        with pytest.raises(BadRequest, match=r"mn01_as finds no events.*fmn04_strong.*fmn10\+tf"):
            ask(torch.zeros(100))


def test_detectors_know_the_447_labels() -> None:
    names = detectors()
    assert {NAME, DEFAULT_DETECTOR} <= set(names)
    assert "fmn04_weak" not in names
    assert len(set(strong_labels())) == 447
    model = AudioEmbedder.build(NAME)
    assert model.labels == strong_labels()
    assert (model.labels[0], model.labels[-1]) == (
        "Accelerating, revving, vroom",
        "Zipper (clothing)",
    )


def test_published_names_are_understood(model: AudioEmbedder, tmp_path: Path) -> None:
    state = {
        name.replace("model.fmn.", "model.model."): values
        for name, values in model.backbone.state_dict().items()
    }
    torch.save(state, tmp_path / MODELS[NAME].weights)
    weights = tmp_path / MODELS[NAME].weights
    loaded = AudioEmbedder.load(NAME, weights, device="cpu", runtime="eager")
    wave = bursts(1.0)
    assert loaded.events(wave) == model.events(wave)


def test_without_a_checkpoint_the_error_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "cache_dir", lambda: tmp_path)
    monkeypatch.delenv(WEIGHTS_DIR_VARIABLE, raising=False)

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(checkpoints, "download", offline)
    with pytest.raises(DownloadFailed) as caught:
        AudioEmbedder.load(DEFAULT_DETECTOR)
    for part in (f"{DEFAULT_DETECTOR}.pt", "EfficientSED", str(tmp_path), WEIGHTS_DIR_VARIABLE):
        assert part in str(caught.value)
