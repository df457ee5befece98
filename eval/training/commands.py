"""The commands `embedder train ...` and `embedder score card`: options in, files and a table out.

What needs torch or scikit-learn is imported inside, so that help is quick.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from embedder.cli.report import counted
from embedder.defaults import DEFAULT_MODEL
from embedder.errors import BadRequest
from embedder.extras import require
from eval.data.esc10_fsdd import HELD_OUT
from eval.training.console import chosen_device, report, run, say

LOG_EVERY: Final = 250
SETTLING: Final = 24  # batches that measure the statistics of the finished student

Model = Annotated[str, typer.Option(help="Model name or self-describing checkpoint.")]
Weights = Annotated[Path | None, typer.Option(help="Its checkpoint, if not searched for.")]
Out = Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log.csv, curve, result.")]
Layout = Annotated[str, typer.Option(help="auto, folder, csv, esc50, esc10, openmic, ...")]
TestFold = Annotated[list[str], typer.Option(help="Fold to test on; repeat for several.")]
Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")]
Rate = Annotated[
    float | None, typer.Option(help="Peak learning rate; default: the papers'.", min=1e-12)
]
Data = Annotated[Path, typer.Argument(help="Folder or CSV of labelled sound.")]


def corpus(
    roots: Annotated[list[Path], typer.Argument(help="Folders of unlabelled sound.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    workers: int = 2,
    synthetic: Annotated[int, typer.Option(help="Made sounds to add.")] = 420,
) -> None:
    """Decode unlabelled sound once, into what `distill` reads.

    Frames of mel power, with some synthetic sounds among them.
    """
    from eval.data.corpus import build

    built = build(roots, out, workers, synthetic=synthetic)
    hours = sum(clip.frames for clip in built.clips) / 360_000
    say(f"{counted(len(built), 'clip')}, {hours:.1f} h in {out}")


def distill(
    corpus: Annotated[Path, typer.Argument(help="What `corpus` wrote.")],
    out: Out,
    teacher: Model = "mn04_as",
    weights: Weights = None,
    steps: int = 6500,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    hold_out: Annotated[list[str], typer.Option(help="Paths never trained on.")] = list(HELD_OUT),  # noqa: B006
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Distil a teacher's feature maps into a small model, as for the bundled one."""
    require("scipy")
    import torch

    from embedder.model import AudioEmbedder
    from eval.data.corpus import Corpus
    from eval.data.mixing import Mixer
    from eval.training import parallel
    from eval.training.distill import save_student
    from eval.training.features import FeatureConfig, FeatureDistillation, student_of
    from eval.training.heldout import HeldOut, crops
    from eval.training.norms import settle
    from eval.training.soap import soap
    from eval.training.trainer import CHECKPOINT, Schedule, TrainConfig, Trainer

    sounds = Corpus.open(corpus, in_memory=True)
    source = AudioEmbedder.load(teacher, weights, device="cpu")
    torch.manual_seed(seed + 1)
    student = student_of(source, out.name)
    held_out = HeldOut(source.backbone, crops(sounds.where(only=hold_out)))
    task = FeatureDistillation(
        student.backbone,
        source.backbone,
        Mixer(sounds.where(but=hold_out), seed=seed, rank=parallel.rank()),
        FeatureConfig(steps),
        held_out.compare,
        device,
    )
    if not (out / CHECKPOINT).is_file():
        task.start_from_statistics()
    config = TrainConfig(
        Schedule(steps, rate, warm_up=0.01, plateau=0.49, ramp_down=0.49),
        seed=seed,
        evaluate_every=LOG_EVERY,
        checkpoint_every=LOG_EVERY,
        clip_norm=20.0,
        device=device,
    )
    run(Trainer(task, out, config, soap, report))
    if parallel.rank() == 0:
        settle(student.backbone, map(task.sample, range(SETTLING)))
        save_student(out / f"{out.name}.safetensors", student)


def logits(
    data: Data,
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    teacher: Annotated[list[str], typer.Option(help="Teacher; repeat for an ensemble.")],
    layout: Layout = "auto",
) -> None:
    """Store teachers' mean logits, for `distill-tags`."""
    from embedder.model import AudioEmbedder
    from eval.data.labelled import open_dataset
    from eval.training.distill import ensemble_logits, save_logits

    paths = [example.path for example in open_dataset(data, layout).examples]
    save_logits(out, paths, ensemble_logits([AudioEmbedder.load(name) for name in teacher], paths))
    say(f"logits of {counted(len(paths), 'clip')} in {out}")


def distill_tags(
    data: Data,
    out: Out,
    student: Model = DEFAULT_MODEL,
    stored: Annotated[Path | None, typer.Option("--logits", help="What `logits` wrote.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Online teacher, without --logits.")] = None,
    layout: Layout = "auto",
    labelled: Annotated[bool, typer.Option(help="Use the labels (AudioSet's) as well.")] = False,
    random: Annotated[bool, typer.Option(help="Start from random weights.")] = False,
    steps: int = 10_000,
    rate: Rate = None,
    batch: int = 120,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Distil tags by the papers' recipe, from stored logits or a teacher beside."""
    from embedder.model import AudioEmbedder
    from eval.data.labelled import Waves, open_dataset
    from eval.training.distill import (
        DistillConfig,
        Material,
        TagDistillation,
        annealing,
        load_logits,
        peak_rate,
        save_student,
    )
    from eval.training.trainer import Schedule, TrainConfig, Trainer

    if labelled and stored is not None:
        raise BadRequest("--labelled goes with --teacher; stored logits come without labels")
    load = AudioEmbedder.build if random else AudioEmbedder.load
    model = load(student).to("cpu")
    if stored is not None:
        paths, taught = load_logits(stored)
        material = Material(Waves(paths, model.sample_rate), logits=taught)
    else:
        dataset = open_dataset(data, layout)
        targets = dataset.targets() if labelled else None
        material = Material(dataset.waves(model.sample_rate), targets)
    beside = AudioEmbedder.load(teacher, device=device) if teacher else None
    task = TagDistillation(model, material, DistillConfig(batch=batch, seed=seed), beside)
    # 8 of 200 epochs warm-up, 72 plateau, 95 ramp-down, 25 at 1 %.
    network = model.spec.network
    peak = peak_rate(network, 2e-3) if rate is None else rate
    schedule = Schedule(steps, peak, 0.04, 0.36, 0.475)
    config = TrainConfig(
        schedule, seed, device=chosen_device(device), temperature=annealing(network)
    )
    run(Trainer(task, out, config, report=report))
    save_student(out / f"{out.name}.safetensors", model.to("cpu"))


def finetune(
    data: Data,
    out: Out,
    test_fold: TestFold,
    model: Model = DEFAULT_MODEL,
    weights: Weights = None,
    layout: Layout = "auto",
    epochs: int = 80,
    rate: Rate = None,
    batch: int = 32,
    seconds: Annotated[float, typer.Option(help="Length of training crops.")] = 10.0,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fine-tune a network on labelled sound; the result serves its labels as tags."""
    from embedder.model import AudioEmbedder
    from eval.data.labelled import open_dataset
    from eval.training.distill import peak_rate
    from eval.training.finetune import Finetune, FinetuneConfig
    from eval.training.trainer import TrainConfig, Trainer

    train, test = open_dataset(data, layout).split(test_fold)
    on = chosen_device(device)
    base = AudioEmbedder.load(model, weights, device=on)
    peak = peak_rate(base.spec.network, 1e-3) if rate is None else rate
    config = FinetuneConfig(epochs, peak, batch, seconds, seed)
    task = Finetune(base, train, test, config)
    count = len(train.examples)
    every = 5 * config.per_epoch(count)
    loop = TrainConfig(
        config.schedule(count), seed, every, every, device=on, amp=on.startswith("cuda")
    )
    run(Trainer(task, out, loop, report=report))
    task.save(out / f"{out.name}.safetensors")


def probe(
    data: Data,
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    model: Model = DEFAULT_MODEL,
    weights: Weights = None,
    layout: Layout = "auto",
    test_fold: Annotated[list[str], typer.Option(help="Fold to test on.")] = [],  # noqa: B006
    kind: Annotated[str, typer.Option(help="linear or mlp.")] = "linear",
    seed: Seed = 0,
) -> None:
    """Train a classifier on frozen embeddings, in seconds.

    Python, the command line and the server take its file where they take a model's name, and
    serve its labels as tags.
    """
    require("sklearn")
    from embedder.model import AudioEmbedder
    from eval.data.labelled import open_dataset
    from eval.training.finetune import score
    from eval.training.probe import embed, fit_probe

    embedder = AudioEmbedder.load(model, weights)
    dataset = open_dataset(data, layout)
    train, test = dataset.split(test_fold) if test_fold else (dataset, None)
    vectors = embed(embedder, train.waves(embedder.sample_rate))
    fitted = replace(fit_probe(vectors, train, embedder, kind, seed), model=model)
    fitted.save(out)
    if test is not None:
        vectors = embed(embedder, test.waves(embedder.sample_rate))
        report(score(fitted.logits(vectors), test.targets(), test.multi_label))
    labels = counted(len(train.labels), "label")
    say(f"{labels} from {counted(len(train.examples), 'clip')} in {out}")


def card(
    audio: Annotated[Path, typer.Argument(help="Folder with distill/, esc10/ and fsdd/.")],
    student: Model = DEFAULT_MODEL,
    teacher: Model = "mn04_as",
    weights: Annotated[Path | None, typer.Option(help="The teacher's checkpoint.")] = None,
    page: Annotated[Path | None, typer.Option(help="Card to put the tables into.")] = None,
) -> None:
    """Every score of the bundled model's card, as Markdown tables."""
    require("sklearn")
    from embedder.model import AudioEmbedder
    from eval.training.card import insert, scores

    tables = scores(AudioEmbedder.load(student), AudioEmbedder.load(teacher, weights), audio)
    if page is not None:
        insert(page, tables)
    Console(soft_wrap=True, markup=False, highlight=False).print(tables)
