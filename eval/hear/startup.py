"""Runs a module of the HEAR kit as it was published, beside current libraries.

    python -m eval.hear.startup [--options JSON] MODULE ARGUMENTS...

The kit (heareval 2021.1.3, hearvalidator 2021.0.2) was written for TensorFlow 2, PyTorch
Lightning 1 and setuptools before 82. Each function below mends one thing that has broken since
then. They act in memory: the installed files stay as they are, and no score depends on it.

This module runs inside the kit's environment. It imports none of our packages, and those of the
kit only inside functions.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from functools import partial, wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any, Final

# The function that `python -m MODULE` would call. It is called on the imported module: to run the
# module as a script would load it a second time, without what was mended.
# The user's folder, which may hold a HEAR module of theirs; it is looked into last.
FOLDER_VARIABLE: Final = "EVAL_HEAR_FOLDER"
# What `python -m MODULE` would call, so that the module is imported, and mended, only once.
ENTRIES: Final = {
    "heareval.embeddings.runner": "runner",
    "heareval.predictions.runner": "runner",
    "hearvalidator.validate": "main",
}


def run(module: str, arguments: list[str], options: Mapping[str, Any]) -> None:
    """Run one module with these arguments, as `python -m` would.

    `options` are passed to `load_model` by the validator, which has no argument of its own for
    them.
    """
    stub_tensorflow()
    stub_pkg_resources()
    stub_pynvml()
    trust_own_checkpoints()
    if "hearbaseline" in arguments:
        name_mel_arguments()
    if module == "hearvalidator.validate":
        widen_validator(options)
    if module == "heareval.predictions.runner":
        adapt_lightning()
    sys.argv = [module, *arguments]
    if module in ENTRIES:
        getattr(import_module(module), ENTRIES[module])()
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def stub_tensorflow() -> None:
    """1. Both packages import TensorFlow (2 GB) only to ask whether a model is one of its own."""
    if find_spec("tensorflow") is None:
        # The runner stops if torch sees a card that TensorFlow does not see.
        test = SimpleNamespace(is_gpu_available=lambda **_: True)
        _install("tensorflow", Module=type("Module", (), {}), test=test)


def stub_pkg_resources() -> None:
    """2. dcase_util (through sed_eval) imports pkg_resources, which setuptools 82 removed.

    It never uses it.
    """
    if find_spec("pkg_resources") is None:
        _install("pkg_resources")


def stub_pynvml() -> None:
    """With CUDA, heareval asks pynvml for the name and the memory of the card: torch knows both."""
    if find_spec("pynvml") is not None:
        return
    import torch

    def memory(_: object) -> SimpleNamespace:
        free, total = torch.cuda.mem_get_info(0)
        return SimpleNamespace(used=total - free)

    _install(
        "pynvml",
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetName=lambda index: torch.cuda.get_device_name(index).encode(),
    )


def widen_validator(options: Mapping[str, Any]) -> None:
    """3. The validator refuses 32 kHz, and fails while it says so.

    The version in HEAR's git repository accepts 32 kHz.
    """
    validator = import_module("hearvalidator.validate").ValidateModel
    validator.ACCEPTABLE_SAMPLE_RATE.append(32_000)
    validator.sample_rate = property(lambda self: self.model.sample_rate)
    imported = validator.import_model

    def import_model(self: Any) -> None:
        imported(self)
        names = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
        api = {name: getattr(self.module, name) for name in names if hasattr(self.module, name)}
        if "load_model" in api:
            api["load_model"] = partial(api["load_model"], **options)
        self.module = SimpleNamespace(**api)

    if options:
        validator.import_model = import_model


def adapt_lightning() -> None:
    """4, 5, 7. heareval's predictors use what Lightning 2 no longer has."""
    lightning: Any = import_module("pytorch_lightning")
    lightning.Trainer = _trainer(lightning.Trainer)
    predictions = import_module("heareval.predictions.task_predictions")
    _collect_outputs(predictions.AbstractPredictionModel)
    _settable_epoch(import_module("pytorch_lightning.loops").fit_loop._FitLoop)


def _trainer(trainer: type) -> type:
    """4. The argument `gpus` is now called `accelerator` and `devices`.

    Progress bars and summaries are switched off: they would only fill the log.
    """

    class AdaptedTrainer(trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, gpus: Any = None, **kwargs: Any) -> None:
            quiet = {"enable_progress_bar": False, "enable_model_summary": False}
            device = {"accelerator": "gpu" if gpus else "cpu", "devices": gpus or 1}
            super().__init__(*args, **{**quiet, **device, **kwargs, "profiler": None})

    return AdaptedTrainer


def _collect_outputs(model: Any) -> None:
    """5. `validation_epoch_end(outputs)` no longer exists: outputs are collected batch by batch."""
    for stage, name in (("validation", "val"), ("test", "test")):
        delattr(model, f"{stage}_epoch_end")
        setattr(model, f"on_{stage}_batch_end", _keep_output)
        setattr(model, f"on_{stage}_epoch_end", _score_with(name))


def _keep_output(model: Any, outputs: Any, *_: object, **__: object) -> None:
    model.__dict__.setdefault("kept_outputs", []).append(outputs)


def _score_with(name: str) -> Callable[[Any], None]:
    def on_epoch_end(model: Any) -> None:
        model._score_epoch_end(name, model.__dict__.pop("kept_outputs", []))

    return on_epoch_end


def trust_own_checkpoints() -> None:
    """6. The kit's own checkpoints hold classes, which torch by default refuses to load."""
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


def _settable_epoch(loop: Any) -> None:
    """7. Event tasks set the loop's epoch before testing; Lightning 2 keeps it in another field."""

    def get(self: Any) -> int:
        return int(self.epoch_progress.current.completed)

    def put(self: Any, epoch: int) -> None:
        self.epoch_progress.current.completed = epoch

    loop.current_epoch = property(get, put)


def name_mel_arguments() -> None:
    """HEAR's naive baseline passes the sample rate by position; librosa now requires its name."""
    filters: Any = import_module("librosa.filters")
    mel = filters.mel

    @wraps(mel)
    def positional(sr: float, n_fft: int = 2048, **options: Any) -> Any:
        return mel(sr=sr, n_fft=n_fft, **options)

    filters.mel = positional


def describe(module: str, arguments: list[str], options: Mapping[str, Any]) -> None:
    """Print one line of JSON on the model that `module.load_model` returns.

    It holds the sample rate, the sizes of embeddings, the number of parameters and a hash of them.
    """
    import hashlib

    stub_tensorflow()
    if module == "hearbaseline":
        name_mel_arguments()
    model = import_module(module).load_model(*arguments, **options)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    facts = {
        "sample_rate": model.sample_rate,
        "scene_embedding_size": model.scene_embedding_size,
        "timestamp_embedding_size": model.timestamp_embedding_size,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "state_sha256": digest.hexdigest(),
        "identity": model.identity if module == "hear_api" else {},
    }
    sys.stdout.write(f"{json.dumps(facts)}\n")


def _install(name: str, **contents: Any) -> None:
    """Make `import name` give a module with these contents."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(contents)
    sys.modules[name] = module


def main(arguments: list[str]) -> None:
    """Run a module, or describe its model: `[--options JSON] [--describe] MODULE ARGUMENTS...`."""
    options: dict[str, Any] = {}
    sys.path += filter(None, [os.environ.get(FOLDER_VARIABLE)])
    if arguments[:1] == ["--options"]:
        options, arguments = json.loads(arguments[1]), arguments[2:]
    if arguments[:1] == ["--describe"]:
        describe(arguments[1], arguments[2:], options)
    else:
        run(arguments[0], arguments[1:], options)


if __name__ == "__main__":
    main(sys.argv[1:])
