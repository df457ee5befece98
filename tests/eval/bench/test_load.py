"""What the bulk and server benchmarks send, and how they read the clock."""

from __future__ import annotations

import pytest

from embedder.audio.decode import load_audio
from eval.bench.load import Answers, Load, send
from eval.bench.material import FORMATS, RATE, clip, encoded
from tests.service_kit import FakeModel, fake_app, live


@pytest.mark.parametrize("kind", FORMATS)
def test_clips_become_files_that_decode(kind: str) -> None:
    samples = load_audio(encoded(clip(1, 1.0), kind), RATE)
    assert RATE <= samples.size <= RATE + 1024
    assert 0.05 < samples.std() < 0.2


def test_clients_send_what_the_cache_knows_or_nothing_that_it_knows() -> None:
    model = FakeModel()
    with live(fake_app(model)) as port:
        warm = model.calls
        answers = send(Load(port, seconds=0.1, connections=3, requests=20))
        computed = sum(size for size, _ in model.batches[warm:])
        assert computed == len(answers.latencies) == 20
        send(Load(port, seconds=0.1, connections=1, requests=20, alike=True))
        assert sum(size for size, _ in model.batches[warm:]) == computed + 1


def test_percentiles_are_of_sorted_answers() -> None:
    answers = Answers([], [float(second) for second in range(100)], connections=1, cpu=0.1)
    assert [answers.percentile(percent) for percent in (0, 50, 99, 100)] == [0, 50, 99, 99]


def test_the_pace_is_that_of_full_connections() -> None:
    slow_start, steady, slow_end = [5.0, 5.5], [6.0, 7.0, 8.0, 9.0], [20.0]
    answers = Answers([*slow_start, *steady, *slow_end], [], connections=2, cpu=0.1)
    assert answers.pace == 1
