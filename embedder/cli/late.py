"""What the command line takes from packages that import `embedder`, imported when it is used.

The core imports neither `service` nor `eval`: this table alone names them. Help shows the
summaries without importing what they describe; each is its function's first line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, slots=True)
class LateCommand:
    """A command's function as `module:name`, and what help says of it."""

    function: str
    summary: str


@dataclass(frozen=True, slots=True)
class LateGroup:
    """Commands that share a first word."""

    summary: str
    commands: Mapping[str, LateCommand]


SERVE: Final = "service.__main__:serve"
SERVER_SETTINGS: Final = "service.settings:Settings"
# Variables that only late commands read; a server knows by them that a name is no mistake.
VARIABLES: Final = ("EMBEDDER_HEAR_ENV",)

_TRAINING: Final = "eval.training.commands"
_DETECTORS: Final = "eval.training.detector_commands"

GROUPS: Final[Mapping[str, LateGroup]] = MappingProxyType(
    {
        "train": LateGroup(
            "Probes, fine-tuning, distillation and detectors: docs/training.md.",
            {
                "probe": LateCommand(
                    f"{_TRAINING}:probe",
                    "Train a classifier on frozen embeddings, in seconds.",
                ),
                "finetune": LateCommand(
                    f"{_TRAINING}:finetune",
                    "Fine-tune a network on labelled sound; the result serves its labels as tags.",
                ),
                "detector": LateCommand(
                    f"{_DETECTORS}:detector",
                    "Train a detector of sound events, for `embedder detect` and the server.",
                ),
                "mixtures": LateCommand(
                    f"{_DETECTORS}:mixtures",
                    "Mix ESC-10 excerpts at known times, to train and to judge detectors.",
                ),
                "pseudo": LateCommand(
                    f"{_DETECTORS}:pseudo",
                    "Store teachers' mean frame probabilities as pseudo-labels for `detector`.",
                ),
                "corpus": LateCommand(
                    f"{_TRAINING}:corpus",
                    "Decode unlabelled sound once, into what `distill` reads.",
                ),
                "distill": LateCommand(
                    f"{_TRAINING}:distill",
                    "Distil a teacher's feature maps into a small model, as for the bundled one.",
                ),
                "logits": LateCommand(
                    f"{_TRAINING}:logits",
                    "Store teachers' mean logits, for `distill-tags`.",
                ),
                "distill-tags": LateCommand(
                    f"{_TRAINING}:distill_tags",
                    "Distil tags by the papers' recipe, from stored logits or a teacher beside.",
                ),
            },
        ),
        "score": LateGroup(
            "Scores of sound events, and those of the bundled model's card.",
            {
                "events": LateCommand(
                    "eval.scores.sed:score",
                    "PSDS1, segment and event F1 of a detector on annotated clips.",
                ),
                "card": LateCommand(
                    f"{_TRAINING}:card",
                    "Every score of the bundled model's card, as Markdown tables.",
                ),
            },
        ),
        "hear": LateGroup(
            "The HEAR benchmark, by its official kit: docs/hear.md.",
            {
                "run": LateCommand(
                    "eval.hear.cli:hear",
                    "Score models by the official HEAR kit; one table.",
                ),
                "features": LateCommand(
                    "eval.hear.cli:features",
                    "Compare the features of one model, as the paper's Table II does.",
                ),
                "models": LateCommand(
                    "eval.hear.cli:models",
                    "Compare all models whose weights are here, as the paper's Fig. 2 does.",
                ),
                "tasks": LateCommand(
                    "eval.hear.cli:listing",
                    "List the 19 tasks of HEAR, the recipes, and the challenge's best scores.",
                ),
                "build": LateCommand(
                    "eval.hear.cli:build",
                    "Make a HEAR task of your own data: class folders, or audio and a CSV.",
                ),
                "resample": LateCommand(
                    "eval.hear.cli:resample",
                    "Bring HEAR tasks to a model's sample rate, from the highest rate they have.",
                ),
            },
        ),
        "bench": LateGroup(
            "Speed, memory and robustness, measured: docs/benchmarks.md.",
            {
                "engines": LateCommand(
                    "eval.bench.engines:bench",
                    "Time scene and timestamp embeddings on every engine, and the plain procedure "
                    "beside them.",
                ),
                "startup": LateCommand(
                    "eval.bench.startup:bench_startup",
                    "Time fresh processes: an import, and the tags of one file.",
                ),
                "bulk": LateCommand(
                    "eval.bench.bulk:bench_bulk",
                    "Measure a bulk job against its engine alone, and its work against that of its "
                    "parts.",
                ),
                "server": LateCommand(
                    "eval.bench.server:bench_server",
                    "Measure a server at saturation and alone, and its cache.",
                ),
                "abuse": LateCommand(
                    "eval.bench.abuse:abuse",
                    "Attack servers, each with another attack; one table of what it cost, one of "
                    "promises.",
                ),
                "fuzz": LateCommand(
                    "eval.bench.fuzz:fuzz",
                    "Count how mutated files end; exit code 1 if any ends badly.",
                ),
                "soak": LateCommand(
                    "eval.bench.soak:soak",
                    "Load a server of two models for long; exit code 1 if it does not stay level.",
                ),
            },
        ),
    }
)


def imported(path: str) -> Any:
    """What `module:name` names, imported now."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def command(group: str, name: str) -> Any:
    """A late command with its options, imported now."""
    single = typer.Typer(add_completion=False)
    single.command(name)(imported(GROUPS[group].commands[name].function))
    return typer.main.get_command(single)


class LateGroupCommand(TyperGroup):
    """The group of GROUPS that it is named after; it imports the one command that is used."""

    def __init__(self, *, name: str, **attributes: Any) -> None:
        listed = {
            title: TyperCommand(title, help=late.summary)
            for title, late in GROUPS[name].commands.items()
        }
        super().__init__(name=name, **attributes | {"commands": listed})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments begin with, imported, and the rest of them."""
        name, listed, rest = super().resolve_command(ctx, args)
        if name is None or listed is None or self.name is None:
            return name, listed, rest
        return name, command(self.name, name), rest


def group_app(name: str) -> typer.Typer:
    """One group, to be added to the command line."""
    return typer.Typer(
        name=name, cls=LateGroupCommand, help=GROUPS[name].summary, no_args_is_help=True
    )
