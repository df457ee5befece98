"""The kit's environment and start-up module, as far as they can be seen without the kit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedder.errors import BadRequest
from eval.hear import environment, startup
from eval.hear.environment import Kit, KitFailed
from eval.hear.run import Screen, default_jobs, find_task

ROOT = Path(startup.__file__).resolve().parents[2]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadRequest, match="no environment of the kit"):
        environment.create(tmp_path)
    assert environment.ready(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_installation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise KitFailed("no network")

    monkeypatch.setattr(environment, "_install", fail)
    with pytest.raises(KitFailed):
        environment.create(tmp_path / "kit")
    assert list(tmp_path.iterdir()) == []


def test_a_whole_environment_sees_the_running_one_and_is_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_install", lambda _: None)
    kit = environment.create(tmp_path / "kit")
    assert environment.ready(tmp_path / "kit") == kit
    code = "import numpy, sys; sys.stdout.write(sys.prefix + ' ' + numpy.__file__)"
    done = subprocess.run([str(kit.python), "-c", code], capture_output=True, text=True, check=True)
    prefix, _, numpy = done.stdout.partition(" ")
    assert Path(prefix) == tmp_path / "kit"
    assert numpy == sys.modules["numpy"].__file__
    monkeypatch.setattr(environment, "PACKAGES", ("heareval==2022",))
    assert environment.ready(tmp_path / "kit") is None


def test_processes_of_the_kit_find_modules_and_weights_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDDER_WEIGHTS_DIR", "weights")
    variables = Kit(tmp_path).variables(threads=3)
    assert variables["EMBEDDER_WEIGHTS_DIR"] == str(tmp_path / "weights")
    assert variables["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert str(tmp_path) not in variables["PYTHONPATH"].split(os.pathsep)  # it comes last
    assert variables[startup.FOLDER_VARIABLE] == str(tmp_path)
    assert variables["OMP_NUM_THREADS"] == "3"


def test_an_unknown_task_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"esc10, digits.*fsd50k"):
        find_task("esc11", tmp_path, tmp_path, 1, Screen())


def test_a_recipe_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="--data names the folder"):
        find_task("esc10", tmp_path, None, 1, Screen())


def test_lightnings_old_trainer_arguments_are_mapped() -> None:
    class Trainer:
        def __init__(self, **options: Any) -> None:
            self.options = options

    made: Any = startup._trainer(Trainer)
    assert made(gpus=None, max_epochs=3).options["accelerator"] == "cpu"
    on_card = made(gpus=[0], max_epochs=3).options
    assert (on_card["accelerator"], on_card["devices"], on_card["max_epochs"]) == ("gpu", [0], 3)


def test_outputs_of_an_epoch_are_collected_and_scored() -> None:
    class Model:
        scored: tuple[str, list[int]] | None = None

        def validation_epoch_end(self, outputs: list[int]) -> None: ...

        def test_epoch_end(self, outputs: list[int]) -> None: ...

        def _score_epoch_end(self, name: str, outputs: list[int]) -> None:
            self.scored = (name, outputs)

    startup._collect_outputs(Model)
    model: Any = Model()
    assert not hasattr(model, "validation_epoch_end")
    for _ in range(2):
        model.on_validation_batch_end(1, "batch", 0)
        model.on_validation_batch_end(2, "batch", 1)
        model.on_validation_epoch_end()
        assert model.scored == ("val", [1, 2])
    model.on_test_batch_end(3, "batch", 0)
    model.on_test_epoch_end()
    assert model.scored == ("test", [3])


def test_the_epoch_of_a_fit_loop_can_be_set() -> None:
    class Loop:
        epoch_progress = SimpleNamespace(current=SimpleNamespace(completed=7))

    startup._settable_epoch(Loop)
    loop: Any = Loop()
    loop.current_epoch = 4
    assert loop.current_epoch == Loop.epoch_progress.current.completed == 4


def test_the_start_up_module_runs_what_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "import json, sys, tensorflow, pkg_resources\n"
        "seen = tensorflow.test.is_gpu_available(cuda_only=False)\n"
        "print(json.dumps([__name__, sys.argv, seen, isinstance(1, tensorflow.Module)]))\n"
    )
    command = [sys.executable, "-m", "eval.hear.startup", "told", "--x", "1"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
    )
    name, arguments, seen, is_module = json.loads(done.stdout)
    assert (name, arguments[1:]) == ("__main__", ["--x", "1"])
    assert seen
    assert not is_module


def test_jobs_are_counted_by_the_cores_that_a_container_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eval.hear.run.available_cores", lambda: 3)
    assert default_jobs() == 3
