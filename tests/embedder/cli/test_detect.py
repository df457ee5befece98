"""`embedder detect`: files in, event lists out, in formats that other programs read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedder import checkpoints
from embedder.cli import main
from embedder.errors import BadRequest
from embedder.events.finder import Event
from embedder.events.formats import FORMATS, Recording, format_of, make_format
from embedder.model import AudioEmbedder
from embedder.testing import write_wav
from tests.cli_kit import plain_environment, write_weights
from tests.detector_kit import NAME, RATE, bursts, lively_detector

ODD = 'Tick\ttock,  "clock"\nwall'
HEARD = (Event("Dog", 0.04, 1.5, 0.875), Event(ODD, 2.0, 2.04, 0.5))


@pytest.fixture(scope="module")
def model() -> Iterator[AudioEmbedder]:
    with lively_detector() as built:
        yield built


@pytest.fixture(autouse=True)
def environment(model: AudioEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's choice: a small detector."""
    plain_environment(monkeypatch)
    monkeypatch.setenv("EMBEDDER_DETECTOR", NAME)
    monkeypatch.setenv("EMBEDDER_DETECTOR_WEIGHTS", str(write_weights(model, tmp_path / "w.pt")))


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """12 s and 0.5 s, and between them no sound at all."""
    folder = tmp_path / "sounds"
    long = write_wav(folder / "long one.wav", bursts(12.0).numpy(), RATE)
    broken = folder / "middle.wav"
    broken.write_bytes(b"no sound")
    return [long, broken, write_wav(folder / "short.wav", bursts(0.5, 1).numpy(), RATE)]


def expected(model: AudioEmbedder, seconds: float, seed: int = 0, **rules: float) -> list[Event]:
    pcm = (np.clip(bursts(seconds, seed).numpy(), -1, 1) * 32767).astype("<i2")
    [events] = model.events(pcm.astype(np.float32) / 32768, **rules)  # type: ignore[arg-type]
    return events


def test_csv_of_many_files_goes_on_after_a_broken_one(
    model: AudioEmbedder, sounds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "events.csv"
    arguments = ["detect", *map(str, sounds), "-o", str(output), "--threshold", "0.7"]
    assert main([*arguments, "--merge-gap-ms", "200", "--min-duration-ms", "100"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{sounds[1]}:" in err
    assert "3 files, 1 failed" in err
    rules = {"threshold": 0.7, "merge_gap_ms": 200.0, "min_duration_ms": 100.0}
    rows = list(csv.DictReader(output.read_text("utf-8").splitlines()))
    failed = [row for row in rows if row["error"]]
    assert [row["path"] for row in failed] == [str(sounds[1])]
    for path, seconds, seed in ((sounds[0], 12.0, 0), (sounds[2], 0.5, 1)):
        heard = [row for row in rows if row["path"] == str(path)]
        events = expected(model, seconds, seed, **rules)
        assert len(events) > 10 or seconds < 1
        assert [row["label"] for row in heard] == [event.label for event in events]
        for row, event in zip(heard, events, strict=True):
            times = float(row["onset"]), float(row["offset"])
            assert times == pytest.approx((event.onset_s, event.offset_s), abs=6e-4)
            assert float(row["score"]) == pytest.approx(event.score, abs=6e-4)
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 1


def test_json_of_many_files(sounds: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "events.json"
    assert main(["detect", *map(str, sounds), "-o", str(output)]) == 1
    documents = json.loads(output.read_text("utf-8"))
    assert [document["path"] for document in documents] == list(map(str, sounds))
    assert [document["seconds"] for document in documents] == [12.0, 0, 0.5]
    assert [bool(document["error"]) for document in documents] == [False, True, False]
    assert [bool(document["events"]) for document in documents] == [True, False, True]


def test_a_table_on_stdout(sounds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    quiet = ["detect", str(sounds[2]), str(sounds[0]), "--threshold", "0.999999"]
    assert main(quiet) == 0
    assert capsys.readouterr().out == f"{sounds[2]}\n  no events\n{sounds[0]}\n  no events\n"
    assert main(["detect", str(sounds[0])]) == 0
    path, *lines = capsys.readouterr().out.splitlines()
    assert path == str(sounds[0])
    onset, offset, score, label = lines[0].split(maxsplit=3)
    assert (0 <= float(onset) < float(offset) <= 12, 0.5 <= float(score) <= 1) == (True, True)
    assert label in AudioEmbedder.build(NAME).labels
    assert main(["detect", str(sounds[0]), "--format", "rttm"]) == 0
    assert capsys.readouterr().out.startswith("SPEAKER ")


def test_thresholds_by_label(
    sounds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = tmp_path / "thresholds.json"
    chosen.write_text('{"Dog": 0.4, "Bark": 0.6}')
    arguments = ["detect", str(sounds[0]), "--format", "json", "--thresholds", str(chosen)]
    assert main(arguments) == 0
    [document] = json.loads(capsys.readouterr().out)
    assert {event["label"] for event in document["events"]} == {"Dog", "Bark"}
    for text in ('{"Unicorn": 0.4}', "[1]", '{"Dog": "loud"}', "{", '{"Dog": 7}'):
        chosen.write_text(text)
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith("embedder: error: ")


def test_a_folder_gets_a_file_a_recording(sounds: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    line = ["detect", *map(str, sounds), "-o", str(folder), "--format", "audacity"]
    assert main(line) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["long one.txt", "short.txt"]
    for text in (path.read_text("utf-8") for path in folder.iterdir()):
        for row in text.splitlines():
            onset, offset, label = row.split("\t")
            assert 0 <= float(onset) < float(offset) <= 12
            assert label
    assert main(line) == 2  # they are there
    assert main([*line, "--overwrite"]) == 1


@pytest.mark.parametrize(
    "extra",
    [
        ("-o", "x.xyz"),
        ("-o", "nowhere/x.csv"),
        ("-o", "."),
        ("--format", "xml"),
        ("--format", "audacity"),
        ("--median", "4"),
        ("--threshold", "0"),
        ("--merge-gap-ms", "-1"),
        ("--model", "mn04_as"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    extra: tuple[str, str],
    sounds: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert main(["detect", str(sounds[0]), str(sounds[2]), *extra]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert set(tmp_path.rglob("*")) == before


def test_without_a_checkpoint_the_error_says_which(
    sounds: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(checkpoints, "cache_dir", lambda: tmp_path / "none")
    monkeypatch.setattr(checkpoints, "download", offline)
    monkeypatch.delenv("EMBEDDER_DETECTOR_WEIGHTS")
    assert main(["detect", str(sounds[0])]) == 2
    assert f"{NAME}.pt" in capsys.readouterr().err


def document(name: str, *recordings: Recording) -> str:
    written = make_format(name, (0, 7000))
    return f"{written.head}{''.join(map(written.part, recordings))}{written.tail}"


def test_csv_reads_back() -> None:
    text = document("csv", Recording("a,b.wav", 3, HEARD), Recording("c", 0, (), 'no "sound"'))
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert rows[0] == ["path", "onset", "offset", "label", "score", "error"]
    assert rows[1:] == [
        ["a,b.wav", "0.040", "1.500", "Dog", "0.875", ""],
        ["a,b.wav", "2.000", "2.040", ODD, "0.500", ""],
        ["c", "", "", "", "", 'no "sound"'],
    ]


def test_json_reads_back() -> None:
    assert json.loads(document("json")) == []
    found = json.loads(document("json", Recording("a", 3, HEARD), Recording("c", 0, (), "why")))
    assert [event["label"] for event in found[0]["events"]] == ["Dog", ODD]
    assert found[1] == {"path": "c", "seconds": 0, "events": [], "error": "why", "note": None}


def test_audacity_labels_have_three_fields() -> None:
    lines = document("audacity", Recording("a", 3, HEARD)).splitlines()
    assert [line.split("\t") for line in lines] == [
        ["0.040000", "1.500000", "Dog"],
        ["2.000000", "2.040000", 'Tick tock, "clock" wall'],
    ]


def test_raven_tables_count_on_through_recordings() -> None:
    second = Recording("b.wav", 5, HEARD[:1])
    text = document("raven", Recording("a.wav", 3.5, HEARD), second)
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["Selection"] for row in rows] == ["1", "2", "3"]
    assert [float(row["Begin Time (s)"]) for row in rows] == [0.04, 2.0, 3.54]
    assert [float(row["End Time (s)"]) for row in rows] == [1.5, 2.04, 5.0]
    assert [float(row["File Offset (s)"]) for row in rows] == [0.04, 2.0, 0.04]
    assert [row["Begin Path"] for row in rows] == ["a.wav", "a.wav", "b.wav"]
    assert {(row["Low Freq (Hz)"], row["High Freq (Hz)"]) for row in rows} == {("0", "7000")}
    assert [row["Annotation"] for row in rows] == ["Dog", 'Tick tock, "clock" wall', "Dog"]


def test_rttm_lines_have_ten_fields() -> None:
    lines = document("rttm", Recording("day 1/a b.wav", 3, HEARD)).splitlines()
    fields = [line.split(" ") for line in lines]
    head = ["SPEAKER", "day_1/a_b", "1"]
    assert fields == [
        [*head, "0.040", "1.460", "<NA>", "<NA>", "Dog", "0.875", "<NA>"],
        [*head, "2.000", "0.040", "<NA>", "<NA>", 'Tick_tock,_"clock"_wall', "0.500", "<NA>"],
    ]


def test_formats_go_by_suffix() -> None:
    assert {name: format_of(Path(f"x{kind.suffix}")) for name, kind in FORMATS.items()} == {
        name: name for name in FORMATS
    }
    with pytest.raises(BadRequest, match=r"\.selections\.txt"):
        format_of(Path("x.doc"))
