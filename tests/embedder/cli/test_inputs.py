"""What the command line takes and gives: stdin and stdout, odd names, damaged files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedder.bulk.job import BulkOptions, embed_files
from embedder.bulk.parts import Existing
from embedder.cli import main
from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from embedder.testing import wav_bytes, write_wav
from tests.cli_kit import (
    MODEL,
    noise,
    rows,
    write_noises,
)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is an empty one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def cut(audio: bytes) -> bytes:
    return audio[: len(audio) // 2]


def lying(audio: bytes) -> bytes:
    """A WAV whose header claims four gigabytes, less a little."""
    claim = (0xFFFF_FFF0).to_bytes(4, "little")
    return audio[:4] + claim + audio[8:40] + claim + audio[44:]


def test_audio_on_stdin_is_the_file_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [file] = write_noises(Path(), [0.5])
    assert main(["tag", str(file), "--json"]) == 0
    named = json.loads(capsys.readouterr().out)
    pipe(monkeypatch, file.read_bytes())
    assert main(["tag", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**named, "path": "-"}
    pipe(monkeypatch, file.read_bytes())
    assert main(["embed", str(file), "-", "-o", "out.parquet"]) == 0
    ours, piped = rows(Path("out.parquet"))
    assert (ours["path"], piped["path"]) == ("000.wav", "-")
    assert piped["embedding"] == ours["embedding"]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_text_goes_to_stdout(form: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_noises(Path(), [0.2])
    assert main(["embed", "000.wav", "-o", f"out.{form}"]) == 0
    assert main(["embed", "000.wav", "-o", "-", "--format", form]) == 0
    assert capfdbinary.readouterr().out == Path(f"out.{form}").read_bytes()
    assert not Path("-").exists()


REFUSED = {
    "tag https://example.org/dog.wav": "is a URL",
    "embed s3://bucket/dog.wav -o out.csv": "is a URL",
    "embed 000.wav -o - --format parquet": "choose jsonl or csv",
    "embed 000.wav -o out.csv --format csv": "--format goes with -o -",
    "embed 000.wav -o - --resume": "continues a file",
    "export mn01_as -o -": "not text",
    "embed 000.wav -o out.csv --hop-ms 0": "hop_ms is 0",
    "embed 000.wav -o out.csv --window-ms 0": "window_ms is 0",
    "embed 000.wav -o out.csv --timestamps --hop-ms 0": "hop_ms is 0",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_makes_no_sense_is_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_noises(Path(), [0.2])
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert REFUSED[line] in err


def test_files_that_a_folder_hides_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    write_noises(Path("sounds"), [0.2])
    for name in ("notes.txt", "cover.jpg", ".hidden"):
        Path("sounds", name).touch()
    assert main(["embed", "sounds", "-o", "out.csv"]) == 0
    assert capsys.readouterr().err == (
        "embedder: 2 files without an audio suffix skipped: sounds/cover.jpg, sounds/notes.txt; "
        "name a file to have it tried\n"
    )


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("options", [[], ["--timestamps"]])
def test_incomplete_files_are_noted(
    workers: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = wav_bytes(noise(2))
    for name, audio in {"a": cut(whole), "b": whole, "c": lying(whole)}.items():
        Path(f"{name}.wav").write_bytes(audio)
    files = ["a.wav", "b.wav", "c.wav"]
    command = ["embed", *files, "-o", "out.parquet", "--workers", workers, *options]
    assert main(command) == 0
    last = {row["path"]: row for row in rows(Path("out.parquet"))}
    assert "incomplete: 1.0 s of audio where the header says 2.0 s" in last["a.wav"]["note"]
    assert last["b.wav"]["note"] is None
    assert "2.0 s of audio where the header says 67108.9 s" in last["c.wav"]["note"]
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"{name}: {last[name]['note']}" for name in ("a.wav", "c.wav")
    ]


def test_one_file_is_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tag", "missing.wav"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "1 file, 1 failed"


def test_every_command_answers_to_h(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("", "embed", "tag", "detect", "export", "models", "fetch", "serve"):
        assert main([*command.split(), "-h"]) == 0
        assert "Usage: embedder" in capsys.readouterr().out


def test_a_shell_completes_names_of_models() -> None:
    code = "import sys; from embedder.cli import main; sys.exit(main())"
    asked = {"_EMBEDDER_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    asked["COMP_WORDS"] = "embedder tag --model mn04_as"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "mn04_as" in done.stdout.split()


def embed(model: AudioEmbedder, *files: Path, existing: Existing = "resume") -> list[str]:
    """The files that were done, those of earlier jobs included."""
    done: list[str] = []
    names = list(map(str, files))
    options = BulkOptions(workers=0)
    embed_files(
        *(model, names, Path("out.parquet"), options, lambda name, _: done.append(name), existing)
    )
    return done


def test_a_changed_file_is_embedded_anew(
    model: AudioEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write_noises(Path(), [0.2, 0.3])
    embed(model, first, second)
    before = {row["path"]: row for row in rows(Path("out.parquet"))}
    write_wav(second, noise(0.3, seed=9))
    os.utime(second, (1, 1))
    answer, computed = AudioEmbedder.answer, []

    def counted(*arguments: Any, **options: Any) -> Any:
        computed.append(arguments)
        return answer(*arguments, **options)

    monkeypatch.setattr(AudioEmbedder, "answer", counted)
    assert sorted(embed(model, first, second)) == ["000.wav", "001.wav"]
    assert len(computed) == 1
    after = {row["path"]: row for row in rows(Path("out.parquet"))}
    assert len(rows(Path("out.parquet"))) == 2
    assert after["000.wav"] == before["000.wav"]
    assert after["001.wav"]["embedding"] != before["001.wav"]["embedding"]
    assert (after["001.wav"]["bytes"], after["001.wav"]["modified"]) == (second.stat().st_size, 1.0)


def test_another_engine_does_not_continue_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    write_noises(Path(), [0.2])
    command = ["embed", "000.wav", "-o", "out.parquet", "--runtime"]
    assert main([*command, "torch"]) == 0
    assert main([*command, "eager", "--resume"]) == 2
    assert "resume with the same --runtime and --device, or --overwrite" in capsys.readouterr().err


def test_other_random_weights_do_not_continue_a_job(model: AudioEmbedder) -> None:
    [file] = write_noises(Path(), [0.2])
    embed(model, file)
    with pytest.raises(BadRequest, match="begun with weights_sha256"):
        embed(AudioEmbedder.build(MODEL), file)
