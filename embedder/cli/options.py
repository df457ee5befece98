"""The options of the command line; all but a few switches are also environment variables.

`X = Annotated[type, ...]` is what a command's parameter is declared as.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from embedder.defaults import (
    DEFAULT_DETECTOR,
    DEFAULT_MODEL,
    HOST,
    PORT,
    SCENE_HOP_MS,
    SCENE_WINDOW_MS,
    TIMESTAMP_HOP_MS,
    TIMESTAMP_WINDOW_MS,
)
from embedder.version import __version__
from embedder.zoo import MODELS

PREFIX: Final = "EMBEDDER_"


def variable(name: str) -> str:
    """The environment variable of an option or a setting."""
    return f"{PREFIX}{name.upper()}"


def _option(name: str, text: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, envvar=variable(name), help=text, **limits)


def _flag(text: str, name: str) -> Any:
    """A switch without a variable, which would do harm if it was left in a shell."""
    return typer.Option(name, help=text)


def _of_its_model(ctx: typer.Context, param: Any, value: Path | None) -> Path | None:
    """Ignore weights from the environment where the command names another than the default model.

    `ctx` has the model if it was typed: click reads typed options before variables.
    """
    source = ctx.get_parameter_source(param.name)
    if source is None or source.name != "ENVIRONMENT":
        return value
    model = ctx.params.get("model") or ctx.params.get("name")
    return value if model in (None, _default_model(param.envvar)) else None


def _default_model(weights: str) -> str:
    """The default model that a variable of weights goes with."""
    name, default = _MODELS_OF_WEIGHTS[weights]
    return os.environ.get(name) or default


# By a variable of weights: the variable of its model, and the model where that is not set.
_MODELS_OF_WEIGHTS: Final = {
    variable("weights"): (variable("model"), DEFAULT_MODEL),
    variable("detector_weights"): (variable("detector"), DEFAULT_DETECTOR),
}


def _names(typed: str) -> list[str]:
    """The models that a shell completes a word to."""
    return [name for name in MODELS if name.startswith(typed)]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATHS...", help="Files, folders, patterns; - takes audio or a list from stdin."
    ),
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="As `embedder models` lists.", autocompletion=_names),
]

SomeNames = Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Default: all.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="As for --model of other commands.")]

Model = Annotated[
    str,
    _option(
        "MODEL",
        "A name of `embedder models`, or a .safetensors.",
        *("--model", "-m"),
        autocompletion=_names,
    ),
]
Weights = Annotated[
    Path | None,
    _option(
        "WEIGHTS",
        "The model's checkpoint; default: searched for. The variable is for the default model.",
        callback=_of_its_model,
    ),
]
Taps = Annotated[
    str | None, _option("TAPS", "Features to join, such as mel,b5,b11; default: the model's.")
]
Device = Annotated[str, _option("DEVICE", "auto, cpu, cuda, cuda:1, ...")]
Runtime = Annotated[
    str, _option("RUNTIME", "What runs the network: auto, torch, openvino, openvino-bf16, cuda.")
]
Workers = Annotated[
    int | None,
    _option("DECODE_WORKERS", "Processes that decode; default: half the cores.", min=1),
]

Timestamps = Annotated[
    bool, _option("TIMESTAMPS", "An embedding every hop, not one a file.", "--timestamps")
]
WindowMs = Annotated[
    float | None,
    _option(
        "WINDOW_MS",
        f"Window; default {SCENE_WINDOW_MS:g}, or {TIMESTAMP_WINDOW_MS:g} with --timestamps.",
    ),
]
HopMs = Annotated[
    float | None,
    _option("HOP_MS", f"Hop; default {SCENE_HOP_MS:g}, or {TIMESTAMP_HOP_MS:g} with --timestamps."),
]

Top = Annotated[int, _option("TOP", "How many tags of a file.", min=1)]
AsJson = Annotated[bool, _flag("Write JSON.", "--json")]
Profile = Annotated[
    bool, _flag("Measure parameters, MACs and memory for 10 s of audio.", "--profile")
]

Table = Annotated[
    Path,
    _option("OUTPUT", "The table: .parquet, .npz, .jsonl or .csv, or -.", "--output", "-o"),
]
TableFormat = Annotated[
    str | None, _option("FORMAT", "Of -o -: jsonl or csv; default jsonl.", "--format")
]
TagLines = Annotated[
    Path | None, _option("TAG_OUTPUT", "A file to write JSON lines to, or -.", "--output", "-o")
]
OnnxFile = Annotated[
    Path, _option("ONNX_OUTPUT", "The ONNX file to write.", "--output", "-o", dir_okay=False)
]
WithFrontend = Annotated[
    bool, _option("WITH_FRONTEND", "Take waveforms, not log-mels.", "--with-frontend")
]
Resume = Annotated[bool, _flag("Continue a job, or add what an output lacks.", "--resume")]
Overwrite = Annotated[bool, _flag("Replace an existing output.", "--overwrite")]

Detector = Annotated[
    str,
    _option("DETECTOR", "An fmn model of `embedder models`, or a .safetensors.", "--model", "-m"),
]
DetectorWeights = Annotated[
    Path | None,
    _option(
        "DETECTOR_WEIGHTS",
        "The model's checkpoint; default: searched for. The variable is for the default detector.",
        "--weights",
        callback=_of_its_model,
    ),
]
Events = Annotated[
    Path | None,
    _option(
        "EVENT_OUTPUT",
        "A .csv, .json, .txt, .selections.txt or .rttm, a folder, or -.",
        "--output",
        "-o",
    ),
]
EventFormat = Annotated[
    str | None, _option("EVENT_FORMAT", "csv, json, audacity, raven or rttm.", "--format")
]
Threshold = Annotated[
    float, _option("THRESHOLD", "Probability from which on a label sounds.", "--threshold")
]
Thresholds = Annotated[
    Path | None, _option("THRESHOLDS", "JSON of {label: threshold}; other labels are left out.")
]
Median = Annotated[int, _option("MEDIAN", "Frames of the median filter, odd; 1: none.")]
MinDurationMs = Annotated[float, _option("MIN_DURATION_MS", "Shorter events are left out.")]
MergeGapMs = Annotated[
    float, _option("MERGE_GAP_MS", "Events of a label no further apart are joined.")
]

Host = Annotated[str | None, _option("HOST", f"Address to listen on; default {HOST}.")]
Port = Annotated[int | None, _option("PORT", f"Default {PORT}.", min=0, max=65535)]
Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="And exit.")
]
