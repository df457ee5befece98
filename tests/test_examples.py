"""Every script of examples/ runs, says what it promises, and is short."""

from __future__ import annotations

import csv
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from embedder import checkpoints
from embedder.defaults import DEFAULT_MODEL
from embedder.testing import write_wav
from embedder.zoo import lookup
from tests.detector_kit import bursts, lively_detector
from tests.service_kit import fake_app, live
from tests.shared import ROOT
from tests.threads import one_thread

EXAMPLES: Final = sorted((ROOT / "examples").glob("*.py"))
MOST_LINES: Final = 30
RATE: Final = lookup(DEFAULT_MODEL).mel.sample_rate


Run = Callable[..., list[str]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("EMBEDDER_DEVICE", "cpu")
    monkeypatch.setenv("NO_PROXY", "*")

    def run(name: str, *arguments: object) -> list[str]:
        """The lines that a script prints."""
        script = str(ROOT / "examples" / name)
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        with one_thread():
            runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def tone(hertz: float, seconds: float = 0.5, seed: int = 0) -> NDArray[Any]:
    """A sine in a little noise, float [S]."""
    n_samples = round(seconds * RATE)
    noise = np.random.default_rng(seed).normal(0, 0.01, n_samples)
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(n_samples) / RATE) + noise


def test_there_are_five_and_each_is_read_at_once() -> None:
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES, path.name


def test_the_same_sound_is_the_most_similar(printed: Run, tmp_path: Path) -> None:
    query = write_wav(tmp_path / "query.wav", tone(500), RATE)
    others = [
        write_wav(tmp_path / f"{hertz}.wav", tone(hertz, seed=1), RATE) for hertz in (500, 3000)
    ]
    best, worst = printed("find_similar.py", query, *reversed(others))
    assert best.endswith(str(others[0]))
    assert float(best.split()[0]) > float(worst.split()[0])


def test_a_stream_is_tagged_block_by_block(printed: Run, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "long.wav", tone(500, seconds=5), RATE)
    times = [line.split()[0] for line in printed("tag_stream.py", sound)]
    assert times == ["0", "2", "4"]


def test_a_probe_tells_its_classes_apart(printed: Run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    for label, hertz in (("low", 300), ("high", 5000)):
        for seed in range(4):
            write_wav(tmp_path / "sounds" / label / f"{seed}.wav", tone(hertz, seed=seed), RATE)
    high, low = printed("train_probe.py", tmp_path / "sounds", tmp_path / "probe.safetensors")
    assert high.startswith("high: [('high', ")
    assert low.startswith("low: [('low', ")


def test_a_server_answers_in_two_forms(printed: Run, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "dog.wav", tone(500), RATE)
    with live(fake_app()) as port:
        tags, shape = printed("ask_server.py", sound, f"http://127.0.0.1:{port}")
    assert "'label': 'loud'" in tags
    assert shape == "(4,)"


def test_events_become_rows(printed: Run, tmp_path: Path) -> None:
    checkpoint, table = tmp_path / "tiny.safetensors", tmp_path / "events.csv"
    with lively_detector() as model:
        checkpoints.save(checkpoint, model.spec, model.backbone.state_dict(), model.labels)
        sound = write_wav(tmp_path / "street.wav", bursts(4.0).numpy(), model.sample_rate)
        [expected] = model.events(sound, threshold=0.3, min_duration_ms=80)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    printed("events_to_csv.py", checkpoint, table, tmp_path / "broken.wav", sound)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert [(row["path"], row["label"], float(row["onset_s"])) for row in rows] == [
        (str(sound), event.label, event.onset_s) for event in expected
    ]
