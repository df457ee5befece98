"""Options, the environment variables that stand for them, and those that nothing reads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from embedder.cli import app, late, main, start
from embedder.errors import BadRequest
from tests.cli_kit import MODEL, write_noises
from tests.shared import ROOT

TYPED_ONLY = {"--json", "--profile", "--resume", "--overwrite"}


def test_misspelt_variables_are_named_once_with_the_nearest_known_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = pytest.importorskip("service.__main__")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(server, "serve", lambda: 0)
    for name in ("EMBEDDER_MAX_BYTE", "EMBEDDER_TOP", "EMBEDDER_HEAR_ENV", "embedder_max_bytes"):
        monkeypatch.setitem(os.environ, name, "1")
    monkeypatch.setitem(os.environ, "EMBEDDER_QQQQQQ", "1")
    assert main(["serve"]) == 0
    near, far = capsys.readouterr().err.splitlines()
    assert near.startswith("embedder: EMBEDDER_MAX_BYTE is no setting and is ignored; ")
    assert near.endswith("did you mean EMBEDDER_MAX_BYTES?")
    assert far.startswith("embedder: EMBEDDER_QQQQQQ is no setting and is ignored; ")


def test_variables_of_late_commands_are_known_to_the_server() -> None:
    read = {
        option.envvar
        for group, listed in late.GROUPS.items()
        for name in listed.commands
        for option in late.command(group, name).params
        if option.envvar
    }
    assert read == set(late.VARIABLES)


def test_weights_of_the_environment_are_for_the_default_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []

    def load(_: str, weights: Path | None, *__: object) -> None:
        seen.append(weights)
        raise BadRequest("enough")

    monkeypatch.setattr(start, "load", load)
    tiny = Path(os.environ["EMBEDDER_WEIGHTS"])
    monkeypatch.setenv("EMBEDDER_DETECTOR_WEIGHTS", "events.pt")
    [file] = write_noises(tmp_path, [0.1])
    export = ["-o", str(tmp_path / "x.onnx")]
    for line in (
        ["tag", str(file)],
        ["tag", str(file), "-m", MODEL],
        ["tag", str(file), "-m", "mn10_as"],
        ["tag", str(file), "-m", "mn10_as", "--weights", "mine.pt"],
        ["export", MODEL, *export],
        ["export", "mn10_as", *export],
        ["detect", str(file)],
        ["detect", str(file), "-m", "fmn10_strong"],
    ):
        assert main(line) == 2, line
    assert seen == [tiny, tiny, None, Path("mine.pt"), tiny, None, Path("events.pt"), None]


def test_a_server_of_another_model_does_without_the_environments_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = pytest.importorskip("service.__main__")
    seen: list[str | None] = []
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def serve() -> int:
        seen.append(os.environ.get("EMBEDDER_WEIGHTS"))
        return 0

    monkeypatch.setattr(server, "serve", serve)
    weights = os.environ["EMBEDDER_WEIGHTS"]
    assert main(["serve"]) == 0
    assert main(["serve", "-m", "mn10_as"]) == 0
    assert seen == [weights, None]


def test_every_option_is_documented_with_its_variable() -> None:
    documented = (ROOT / "docs" / "cli.md").read_text("utf-8")
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    files = {"embed", "tag", "detect", "export", "models", "fetch", "serve"}
    assert set(commands) == files | set(late.GROUPS)
    for name in files:
        for option in commands[name].params:
            if option.param_type_name == "option" and option.name != "help":
                variable = rf"`{option.envvar}`" if option.envvar else "–"
                row = rf"\| `{option.opts[0]}`.*\| {variable} \| .*{name}"
                assert re.search(row, documented), f"{name} {option.opts[0]}"
                assert (option.envvar is None) == (option.opts[0] in TYPED_ONLY)


@pytest.mark.parametrize("name", ["OVERWRITE", "RESUME", "JSON", "PROFILE"])
def test_a_switch_left_in_a_shell_does_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"EMBEDDER_{name}", "1")
    [file] = write_noises(tmp_path, [0.1])
    (tmp_path / "out.parquet").touch()
    assert main(["embed", str(file), "-o", str(tmp_path / "out.parquet")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["models", MODEL]) == 0
    assert capsys.readouterr().out.split()[:2] == ["name", "family"]


def test_variables_count_and_options_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [file] = write_noises(tmp_path, [0.1])
    monkeypatch.setenv("EMBEDDER_TOP", "2")
    assert main(["tag", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["tag", str(file), "--top", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
