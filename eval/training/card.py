"""The scores on the bundled model's card: of the student, its teacher, and simple baselines.

Everything is computed from audio files with `AudioEmbedder`, as the service does it.
Axes: N clips, D values, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from eval.data.corpus import audio_files
from eval.data.esc10_fsdd import (
    DIGITS,
    ESC10,
    FSDD,
    HELD_OUT_FOLD,
    HELD_OUT_FOLDERS,
    HELD_OUT_SPEAKER,
    spoken_digits,
)
from eval.data.labelled import Dataset, Example, Waves, labelled_folder
from eval.scores.metrics import accuracy, centred_cosine, mean_average_precision, relative_error
from eval.training.distill import top_labels
from eval.training.probe import embed, fit_probe

# "clf2" and the "se" taps are left out: a student may represent these inner values otherwise.
TAPS: Final = ("b5", "b11", "b13", "b15", "clf1", "logits")
BEGIN: Final = "<!-- scores: embedder score card -->"
END: Final = "<!-- /scores -->"


def digits(root: Path) -> Dataset:
    """FSDD: DIGIT_SPEAKER_TAKE.wav; folds "train", and "test-SPEAKER" for takes 0 to 4."""
    examples = [
        Example(
            spoken.path,
            frozenset({spoken.digit}),
            f"test-{spoken.speaker}" if spoken.split == "test" else "train",
        )
        for spoken in spoken_digits(root)
    ]
    return Dataset(DIGITS, tuple(examples))


def held_out_files(audio: Path) -> dict[str, list[Path]]:
    """The sound that no training run of the bundled model sees, by set."""
    fold = [e.path for e in labelled_folder(audio / ESC10).examples if e.fold == HELD_OUT_FOLD]
    speaker = sorted((audio / FSDD).glob(f"*_{HELD_OUT_SPEAKER}_*.wav"))
    sets = {f"ESC-10 fold {HELD_OUT_FOLD}": fold, f"FSDD {HELD_OUT_SPEAKER}": speaker}
    sets |= {name: [path for _, path in audio_files([audio / name])] for name in HELD_OUT_FOLDERS}
    if missing := [name for name, files in sets.items() if not files]:
        raise BadRequest(f"{audio} holds nothing of {', '.join(missing)}; name the audio folder")
    return sets


def tap_table(student: AudioEmbedder, teacher: AudioEmbedder, audio: Path) -> str:
    """Compare the student's features with the teacher's, as a Markdown table.

    Columns are the held-out sets. Rows are taps, with relative error / centred cosine; the last
    row is the mAP of the tags against the teacher's `top_labels`.
    """
    columns: dict[str, dict[str, str]] = {}
    for name, files in held_out_files(audio).items():
        ours, theirs = (_features(model, files) for model in (student, teacher))
        column = {
            tap: f"{relative_error(ours[tap], theirs[tap]):.3f} / "
            f"{centred_cosine(ours[tap], theirs[tap]):.3f}"
            for tap in TAPS
        }
        truth = top_labels(theirs["logits"])
        column["tags, mAP"] = f"{mean_average_precision(ours['logits'], truth):.3f}"
        columns[f"{name} ({len(files)})"] = column
    rows = [*TAPS, "tags, mAP"]
    lines = [[row, *(column[row] for column in columns.values())] for row in rows]
    return _markdown(["tap", *columns], lines)


def probe_table(models: Mapping[str, tuple[AudioEmbedder, Sequence[str]]], audio: Path) -> str:
    """Score linear probes on each model's taps: accuracy on ESC-10 and on digits, in Markdown."""
    sounds, spoken = labelled_folder(audio / ESC10), digits(audio / FSDD)
    held_out = f"test-{HELD_OUT_SPEAKER}"
    others = tuple(fold for fold in spoken.folds if fold not in ("train", held_out))
    tests = [(sounds, (HELD_OUT_FOLD,)), (spoken, (held_out,)), (spoken, others)]
    header = [
        "linear probe on",
        f"ESC-10, folds 1-3 → {HELD_OUT_FOLD}",
        f"digits, {HELD_OUT_SPEAKER}",
        "digits, the others",
    ]
    rows = []
    for name, (model, taps) in models.items():
        vectors = {
            id(data): embed(model, data.waves(model.sample_rate), taps) for data in (sounds, spoken)
        }
        scores = [probe_accuracy(model, data, vectors[id(data)], test) for data, test in tests]
        rows.append([name, *(f"{score:.3f}" for score in scores)])
    return _markdown(header, rows)


def probe_accuracy(
    model: AudioEmbedder, data: Dataset, vectors: NDArray[np.float32], test: Sequence[str]
) -> float:
    """Return a linear probe's accuracy, in [0, 1], on the `test` folds.

    Parameters
    ----------
    vectors : embeddings [N, D] of the dataset's examples.
    test : names of folds. The probe learns from all other folds, except those named "test-...".
    """
    folds = np.array([example.fold for example in data.examples])
    tested = np.isin(folds, list(test))
    training = ~tested & ~np.char.startswith(folds, "test-")
    chosen = tuple(e for e, trained in zip(data.examples, training, strict=True) if trained)
    probe = fit_probe(vectors[training], Dataset(data.labels, chosen), model)
    return accuracy(probe.logits(vectors[tested]), data.targets()[tested])


def scores(student: AudioEmbedder, teacher: AudioEmbedder, audio: Path) -> str:
    """Compute all tables of the card, in Markdown."""
    torch.manual_seed(0)
    untrained = AudioEmbedder("untrained", student.spec)
    probes = probe_table(
        {
            f"**{student.name}** (student)": (student, student.taps),
            f"{teacher.name} (teacher)": (teacher, teacher.taps),
            "the student before training": (untrained, untrained.taps),
            "mel means alone": (student, ("mel",)),
        },
        audio,
    )
    return (
        f"{probes}\n\nRelative error / centred cosine similarity to the teacher, on sound that "
        f"the student never trained on (clips):\n\n{tap_table(student, teacher, audio)}"
    )


def insert(page: Path, tables: str) -> None:
    """Put tables between the markers of a page, in place of what is there."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise BadRequest(f"{page} lacks the markers {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END, 1)[1]}")


def _features(model: AudioEmbedder, files: list[Path]) -> dict[str, NDArray[np.float32]]:
    """Return {tap: [N, D]} of whole files, each computed alone."""
    waves = Waves(files, model.sample_rate)
    rows = [model.features(waves[index], taps=TAPS) for index in range(len(waves))]
    return {tap: np.stack([row[tap][0].cpu().numpy() for row in rows]) for tap in TAPS}


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
