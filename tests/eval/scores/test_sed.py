"""Scores of event detection: what is fed to the libraries, and what they say of known cases."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from embedder.audio.decode import load_audio
from embedder.errors import BadRequest
from embedder.events.finder import Event
from embedder.testing import write_wav
from eval.data.annotations import TrueEvent, Truth, merged
from eval.scores import sed
from eval.scores.sed import evaluation_labels, f1, psds1, score
from tests.detector_kit import NAME, RATE, bursts, lively_detector
from tests.shared import SHARED, needs_shared

LABELS = ("dog", "cat", "rain")
TRUTH = {
    "a": [TrueEvent(1.0, 3.0, "dog"), TrueEvent(4.0, 6.0, "cat"), TrueEvent(0.0, 1.0, "bird")],
    "b": [TrueEvent(2.0, 8.0, "dog")],
    "c": [],
}
SECONDS = {"a": 10.0, "b": 10.0, "c": 0.1}


@pytest.fixture
def libraries() -> Iterator[None]:
    """The extra `sed`; what its old code warns of is not ours."""
    pytest.importorskip("sed_scores_eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def frames_of(truth: Truth, shift_s: float = 0.0) -> dict[str, NDArray[np.float32]]:
    """Probability 0.9 where an event is, 0.1 elsewhere."""
    frames = {}
    for clip, events in truth.items():
        values = np.full((int(np.ceil(SECONDS[clip] / 0.04)), 3), 0.1, np.float32)
        for event in events:
            if event.label in LABELS:
                first, last = (round((at + shift_s) / 0.04) for at in event[:2])
                values[first:last, LABELS.index(event.label)] = 0.9
        frames[clip] = values
    return frames


def found(truth: Truth, shift_s: float = 0.0) -> dict[str, list[Event]]:
    return {
        clip: [Event(e.label, e.onset_s + shift_s, e.offset_s + shift_s, 1) for e in events]
        for clip, events in truth.items()
    }


@pytest.mark.extras
@pytest.mark.usefixtures("libraries")
def test_psds1_of_known_cases() -> None:
    assert psds1(frames_of(TRUTH), LABELS, TRUTH, SECONDS) == pytest.approx(1)
    # A second late: half of a's events and 83 % of b's are met, and 70 % are wanted.
    late = psds1(frames_of(TRUTH, 1.0), LABELS, TRUTH, SECONDS)
    assert late == pytest.approx(0, abs=1e-6)  # dog 0.5, cat 0: mean - deviation
    half = psds1(frames_of(TRUTH, 0.4), LABELS, TRUTH, SECONDS)
    assert half == pytest.approx(1)  # 80 % are met
    silent = {clip: values * 0 for clip, values in frames_of(TRUTH).items()}
    assert psds1(silent, LABELS, TRUTH, SECONDS) < 0.1


@pytest.mark.extras
@pytest.mark.usefixtures("libraries")
def test_f1_of_known_cases() -> None:
    perfect = f1(found(TRUTH), LABELS, TRUTH, SECONDS)
    assert perfect == dict.fromkeys(
        ("segment_f1", "segment_f1_macro", "event_f1", "event_f1_macro"), pytest.approx(1)
    )
    late = f1(found(TRUTH, 0.3), LABELS, TRUTH, SECONDS)
    assert late["event_f1"] == 0
    assert 0.7 < late["segment_f1"] < 1
    one = {**found(TRUTH), "b": []}
    scores = f1(one, LABELS, TRUTH, SECONDS)
    assert scores["event_f1"] == pytest.approx(0.8)  # 2 of 3, none wrong
    assert scores["event_f1_macro"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.extras
@pytest.mark.usefixtures("libraries")
def test_a_detector_is_scored_whole(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "x.wav", bursts(4.0).numpy(), RATE)
    with lively_detector() as model:
        [events] = model.events(load_audio(path, RATE))
        truth = {"x": merged(TrueEvent(e.onset_s, e.offset_s, e.label) for e in events)}
        scores = sed.evaluate(model, {"x": path}, truth)
    assert scores == dict.fromkeys(scores, pytest.approx(1))  # it finds what it has found
    assert scores.keys() >= {"psds1", "event_f1", "segment_f1"}


@pytest.mark.extras
@pytest.mark.usefixtures("libraries")
def test_the_command_scores_the_clips_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "audio" / "x_0.wav", bursts(2.0).numpy(), RATE)
    table = tmp_path / "truth.tsv"
    table.write_text("clip\tonset\toffset\tlabel\nx_0\t0.4\t1\tDog\ngone_0\t0\t1\tBark\n")
    with lively_detector() as model:
        torch.save(model.backbone.state_dict(), tmp_path / "w.pt")
    score(table, tmp_path / "audio", NAME, tmp_path / "w.pt")
    out, err = capsys.readouterr()
    found = {name: float(value) for name, value in map(str.split, out.splitlines())}
    assert found.keys() == {
        "psds1",
        *(f"{kind}_f1{mean}" for kind in ("segment", "event") for mean in ("", "_macro")),
    }
    assert 0 <= found["psds1"] <= 100
    assert err == "1 of 2 annotated clips\n"
    with pytest.raises(BadRequest, match="none of the 2"):
        score(table, tmp_path / "nowhere", NAME)


def test_labels_that_both_sides_know() -> None:
    assert evaluation_labels(LABELS, TRUTH) == ("dog", "cat")
    assert evaluation_labels(("cow",), TRUTH) == ()


@needs_shared
def test_the_names_of_audioset_strong_are_the_models() -> None:
    from embedder.labels import strong_labels

    lines = (SHARED / "labels" / "audioset_strong.csv").read_text("utf-8").splitlines()
    assert len(set(strong_labels()) & {line.partition(",")[2].strip('"') for line in lines}) == 447


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in sed.LIBRARIES:
        monkeypatch.setitem(sys.modules, library, None)
    for ask in (lambda: psds1({}, LABELS, TRUTH, {}), lambda: f1({}, LABELS, TRUTH, {})):
        with pytest.raises(BadRequest, match=r"pip install -e '\.\[sed\]'"):
            ask()
