"""The commands that make detectors of sound events: `embedder train mixtures|pseudo|detector`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedder.cli.report import counted
from embedder.errors import BadRequest
from eval.training.commands import Device, Layout, Out, Seed, Weights
from eval.training.console import chosen_device, report, run, say

if TYPE_CHECKING:
    from embedder.zoo import SequenceName


def mixtures(
    audio: Annotated[Path, typer.Argument(help="Folder that holds esc10/.")],
    out: Annotated[Path, typer.Option(help="Folder to write; annotations go to OUT.tsv.")],
    folds: Annotated[str, typer.Option(help="Folds of ESC-10 to take sounds from.")] = "123",
    count: int = 300,
    seed: Seed = 0,
) -> None:
    """Mix ESC-10 excerpts at known times, to train and to judge detectors."""
    from eval.data.strong import write_mixtures

    annotations = write_mixtures(audio, out, folds, count, seed)
    say(f"{counted(count, 'mixture')} in {out}, annotated in {annotations}")


def pseudo(
    audio: Annotated[list[Path], typer.Argument(help="Folders of sound.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    teacher: Annotated[list[str], typer.Option(help="Detector; repeat for an ensemble.")],
) -> None:
    """Store teachers' mean frame probabilities as pseudo-labels for `detector`."""
    from embedder.bulk.inputs import find_audio
    from embedder.model import AudioEmbedder
    from eval.data.strong import write_pseudo

    paths = [Path(path) for path in find_audio(map(str, audio))]
    done = list(write_pseudo(out, [AudioEmbedder.load(name) for name in teacher], paths))
    say(f"pseudo-labels of {counted(len(done), 'clip')} in {out}")


def detector(
    annotations: Annotated[Path, typer.Argument(help="Tab-separated: clip, onset, offset, label.")],
    audio: Annotated[Path, typer.Argument(help="Folder of the clips, files named as they are.")],
    out: Out,
    model: Annotated[str, typer.Option(help="MN or frame-wise MN to start from.")] = "fmn10_weak",
    weights: Weights = None,
    sequence: Annotated[str | None, typer.Option(help="tf, attn, gru, tcn, hybrid, mamba.")] = None,
    dim: Annotated[int | None, typer.Option(help="Its dimension; default: 256 x width.")] = None,
    pseudo: Annotated[Path | None, typer.Option(help="What `pseudo` wrote, of all clips.")] = None,
    weak: Annotated[Path | None, typer.Option(help="Weakly labelled: half of a batch.")] = None,
    layout: Layout = "auto",
    weak_but: Annotated[list[str], typer.Option(help="Fold of it to leave out.")] = [],  # noqa: B006
    test: Annotated[Path | None, typer.Option(help="Annotations to score on.")] = None,
    test_audio: Annotated[Path | None, typer.Option(help="Folder of their clips.")] = None,
    names: Annotated[Path | None, typer.Option(help="CSV of machine id and label.")] = None,
    epochs: int = 120,
    rate: Annotated[float, typer.Option(help="Peak, sequence model and heads.")] = 8e-4,
    backbone_rate: Annotated[float, typer.Option(help="Peak, last stage; 0 freezes.")] = 1e-3,
    batch: int = 256,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a detector of sound events, for `embedder detect` and the server."""
    from embedder.model import AudioEmbedder
    from eval.data.labelled import open_dataset
    from eval.data.strong import PseudoLabels, open_strong
    from eval.training.detector import DetectorConfig, DetectorTraining, Lessons
    from eval.training.detector_network import detector_of
    from eval.training.trainer import TrainConfig, Trainer

    if (test is None) != (test_audio is None):
        raise BadRequest("--test and --test-audio go together")
    strong = open_strong(annotations, audio, names=names)
    weakly = open_dataset(weak, layout) if weak is not None else None
    lessons = Lessons(
        strong,
        weakly.split(weak_but)[0] if weakly and weak_but else weakly,
        PseudoLabels.open(pseudo, strong.labels) if pseudo is not None else None,
    )
    held_out = open_strong(test, test_audio, strong.labels, names) if test and test_audio else None
    config = DetectorConfig(epochs, rate, backbone_rate, batch=batch, seed=seed)
    on = chosen_device(device)
    base = AudioEmbedder.load(model, weights, device=on)
    start = detector_of(base, strong.labels, _sequence(sequence), dim, seed)
    task = DetectorTraining(start, lessons, config, held_out)
    schedule = lessons.schedule(config)
    every = max(1, schedule.steps // 10)
    loop = TrainConfig(schedule, seed, every, every, device=on, amp=on.startswith("cuda"))
    run(Trainer(task, out, loop, task.optimizer, report))
    task.save(out / f"{out.name}.safetensors")


def _sequence(name: str | None) -> SequenceName | None:
    from embedder.networks.sequence import STACKS

    kinds: tuple[SequenceName, ...] = ("gru", *STACKS)
    for kind in kinds:
        if kind == name:
            return kind
    if name is not None:
        raise BadRequest(f"no sequence model {name!r}; choose one of {', '.join(kinds)}")
    return None
