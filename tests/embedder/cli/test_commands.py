"""The command line: answers, exit codes, one clear line for every error."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import embedder
from embedder.cli import EVALUATION, PANELS, late, main
from embedder.defaults import DEFAULT_MODEL
from embedder.model import AudioEmbedder
from embedder.testing import write_wav
from embedder.zoo import MODELS
from tests.cli_kit import (
    MODEL,
    rows,
    write_noises,
)
from tests.golden import arrays
from tests.shared import SHARED, needs_shared

METRO = {"Train": 0.73, "Rail transport": 0.58, "Railroad car, train wagon": 0.56}
METRO |= {"Subway, metro, underground": 0.49}


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real checkpoint, found where the environment says."""
    monkeypatch.setenv("EMBEDDER_MODEL", "mn04_as")
    monkeypatch.delenv("EMBEDDER_WEIGHTS")
    monkeypatch.setenv("EMBEDDER_WEIGHTS_DIR", str(SHARED / "weights"))


@needs_shared
@pytest.mark.usefixtures("real")
def test_a_metro_is_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metro = write_wav(tmp_path / "metro.wav", arrays("audio_32k")["pcm_metro"])
    assert main(["tag", str(metro), "--top", "4"]) == 0
    out, err = capsys.readouterr()
    path, *lines = out.splitlines()
    heard = {label: float(score) for score, label in (line.split(maxsplit=1) for line in lines)}
    assert path == str(metro)
    assert list(heard) == list(METRO)
    assert heard == pytest.approx(METRO, abs=0.01)
    assert err == ""


def test_tags_as_json_and_to_a_file(
    model: AudioEmbedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, other = write_noises(tmp_path, [0.5, 12.0])
    arguments = ["tag", str(good), str(tmp_path / "missing.wav"), str(other), "--top", "3"]
    assert main([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [len(line["tags"]) for line in lines] == [3, 0, 3]
    assert "no such file" in lines[1]["error"]
    assert err.splitlines()[0] == f"{tmp_path / 'missing.wav'}: {lines[1]['error']}"
    for tag in lines[2]["tags"]:
        assert tag["label"] in model.labels
        assert tag["score"] == round(tag["score"], 3)
    output = tmp_path / "tags.jsonl"
    assert main([*arguments, "-o", str(output)]) == 1
    assert output.read_text() == out
    assert capsys.readouterr().out == ""
    assert main([*arguments, "-o", str(output)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "-o", str(output), "--overwrite"]) == 1


def test_embed_writes_a_table_and_reports_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sounds, output = tmp_path / "sounds", tmp_path / "out.parquet"
    write_noises(sounds, [0.2, 0.2])
    assert main(["embed", str(sounds), "-o", str(output)]) == 0
    assert capsys.readouterr() == ("", "")
    assert [row["error"] for row in rows(output)] == [None, None]
    arguments = ["embed", str(sounds), "/missing.wav", "-o", str(output)]
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err == [
        *("/missing.wav: cannot open '/missing.wav': no such file",),
        f"{output}: 3 files, 1 failed",
    ]
    assert main([*arguments, "--resume"]) == 1  # still failed
    assert [row["path"][-4:] for row in rows(output)] == [".wav"] * 3


def test_options_reach_the_model(model: AudioEmbedder, tmp_path: Path) -> None:
    [file] = write_noises(tmp_path, [1.0])
    output = tmp_path / "out.parquet"
    options = ["--timestamps", "--taps", "b5, mel", "--window-ms", "200", "--hop-ms", "250"]
    assert main(["embed", str(file), "-o", str(output), *options]) == 0
    table = rows(output)
    assert [row["ms"] for row in table] == [0, 250, 500, 750, 1000]
    assert len(table[0]["embedding"]) == model.tap_sizes["b5"] + model.tap_sizes["mel"]


def test_a_list_on_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_noises(tmp_path, [0.1, 0.2])
    listing = "\n".join([*map(str, files), "", str(files[0])]).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listing)))
    assert main(["embed", "-", "-o", str(tmp_path / "out.parquet")]) == 0
    assert [row["path"] for row in rows(tmp_path / "out.parquet")] == list(map(str, files))


def test_progress_is_for_terminals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_noises(tmp_path, [0.1, 0.1])
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that this is a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert main(["embed", str(tmp_path), "-o", str(tmp_path / "out.parquet")]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err
    assert f"{tmp_path}/out.parquet: 2 files, 0 failed" in err


def test_ctrl_c_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_noises(tmp_path, [0.1, 0.2, 0.3])
    arguments = ["embed", str(tmp_path), "-o", str(tmp_path / "out.parquet")]
    answer, calls = AudioEmbedder.answer, iter(range(9))

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return answer(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AudioEmbedder, "answer", interrupted)
        assert main(arguments) == 130
    err = capsys.readouterr().err
    assert "--resume" in err
    assert err.endswith("embedder: interrupted\n")
    assert main([*arguments, "--resume"]) == 0
    assert next(calls) == 3  # the two that were finished were not computed again
    assert len(rows(tmp_path / "out.parquet")) == 3


REFUSED = {
    "embed {wav} -o out.parquet -m banana": "choose one of sprout04",
    "embed {wav} -o out.parquet --taps b5,b99": "no tap 'b99'",
    "embed {wav} -o out.xlsx": ".parquet, .npz, .jsonl, .csv",
    "embed {wav} -o nowhere/out.csv": "existing folder",
    "embed {wav} -o out.csv --hop-ms 0.1": "hop_ms is 0.1",
    "embed {wav} -o out.csv --resume --overwrite": "choose one",
    "embed {wav} -o out.csv --weights none.pt": "no weights file 'none.pt'",
    "embed {wav} -o out.csv --device banana": "choose auto, cpu",
    "embed empty -o out.csv": "no audio files in empty",
    "tag {wav} -o nowhere/tags.jsonl": "No such file or directory",
    "fetch mn10_as banana": "no model 'banana'",
}


@pytest.mark.parametrize("line", REFUSED)
def test_errors_are_one_clear_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    [file] = write_noises(tmp_path, [0.1])
    assert main(line.format(wav=file).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("embedder: error: ")
    assert REFUSED[line] in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("line", ["", "embed", "banana", "tag x --top 0", "tag x --top many"])
def test_usage_errors_exit_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert "Usage: embedder" in "".join(capsys.readouterr())


def test_models_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / MODELS["mn10_as"].weights).touch()
    monkeypatch.setenv("EMBEDDER_WEIGHTS_DIR", str(tmp_path))
    assert main(["models", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(MODELS)
    assert listed["mn10_as"]["path"] == str(tmp_path / MODELS["mn10_as"].weights)
    assert listed["mn40_as"]["path"] is None
    assert (listed["mn40_as"]["width"], listed["mn40_as"]["mean_ap"]) == (4.0, 48.4)
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"mn10_as +mn +1 +4.88 +0.54 +47.1 +- +yes", table)
    assert re.search(r"mn02_as +mn +0.2 +0.27 +- +37.8 +- +-", table)
    assert re.search(r"fmn10_strong +fmn +1 +- +- +- +42.28 +-", table)
    assert main(["models", "mn10_as", "dymn10_as"]) == 0
    titles, *named = capsys.readouterr().out.splitlines()
    assert titles.split()[:2] == ["name", "family"]
    assert [line.split()[0] for line in named] == ["mn10_as", "dymn10_as"]


@needs_shared
@pytest.mark.usefixtures("real")
def test_fetch_prints_where_the_weights_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "mn04_as"]) == 0
    assert capsys.readouterr().out == f"{SHARED / 'weights' / MODELS['mn04_as'].weights}\n"


def test_serve_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    server = pytest.importorskip("service.__main__")
    from service.settings import Settings

    seen: list[Settings] = []
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def serve() -> int:
        seen.append(Settings())
        return 0

    monkeypatch.setattr(server, "serve", serve)
    assert main(["serve", "--port", "1234", "--host", "0.0.0.0", "--device", "cpu"]) == 0
    [settings] = seen
    assert (settings.host, settings.port, settings.model) == ("0.0.0.0", 1234, MODEL)
    monkeypatch.setitem(os.environ, "EMBEDDER_MAX_BYTES", "many")
    assert main(["serve"]) == 2


def test_help_is_quick_and_the_version_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == embedder.__version__
    code = (
        "import sys, embedder.cli as cli; code = cli.main(sys.argv[1:]); "
        "heavy = {'torch', 'av', 'pyarrow', 'numpy', 'httpx', 'fastapi', 'service', 'eval'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else code)"
    )
    for words in (["--help"], ["embed", "--help"], *([group, "--help"] for group in late.GROUPS)):
        answer = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert "Usage: embedder" in answer.stdout


def test_help_is_one_screen_in_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40
    for title in (*PANELS, EVALUATION):
        assert f"─ {title} ─" in text
    assert main(["embed", "--help"]) == 0
    assert DEFAULT_MODEL in capsys.readouterr().out


def test_python_m_embedder() -> None:
    line = [sys.executable, "-m", "embedder", "tag", "/missing.wav", "--device", "banana"]
    answer = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("embedder: error: no device 'banana'")
