"""The options of the command line, each also an environment variable.

`X = Annotated[type, ...]` is what a command's parameter is declared as.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from embedder.defaults import (
    HOST,
    PORT,
    SCENE_HOP_MS,
    SCENE_WINDOW_MS,
    TIMESTAMP_HOP_MS,
    TIMESTAMP_WINDOW_MS,
)
from embedder.version import __version__
from embedder.zoo import MODELS


def _option(variable: str, text: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, envvar=f"EMBEDDER_{variable}", help=text, **limits)


def _names(typed: str) -> list[str]:
    """What a shell completes to."""
    return [name for name in MODELS if name.startswith(typed)]


def _show_version(wanted: bool) -> None:
    if wanted:
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
    Path | None, _option("WEIGHTS", "A checkpoint to use instead of the one searched for.")
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
AsJson = Annotated[bool, _option("JSON", "Write JSON.", "--json")]
Profile = Annotated[
    bool, _option("PROFILE", "Measure parameters, MACs and memory for 10 s of audio.", "--profile")
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
Resume = Annotated[
    bool, _option("RESUME", "Continue a job, or add what an output lacks.", "--resume")
]
Overwrite = Annotated[bool, _option("OVERWRITE", "Replace an existing output.", "--overwrite")]

Detector = Annotated[
    str,
    _option("DETECTOR", "A fmn model of `embedder models`, or a .safetensors.", "--model", "-m"),
]
DetectorWeights = Annotated[
    Path | None,
    _option(
        "DETECTOR_WEIGHTS", "A checkpoint to use instead of the one searched for.", "--weights"
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
