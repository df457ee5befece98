"""Strongly labelled sound: annotations, frame targets, stored pseudo-labels, made mixtures.

Axes: N clips, T frames of 40 ms, C labels.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedder.audio.decode import load_audio
from embedder.bulk.inputs import find_audio
from embedder.defaults import FRAME_MS
from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from eval.data.annotations import TrueEvent, read_truth
from eval.data.clips import write_wav
from eval.data.labelled import Dataset, Waves
from eval.data.mixtures import mixtures

Frames = NDArray[np.float32]  # T C
LABELS: Final = "labels.txt"
MIXTURE_RATE: Final = 32_000


@dataclass(frozen=True, slots=True)
class StrongSet:
    """Clips whose events are known from onset to offset."""

    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    events: tuple[tuple[TrueEvent, ...], ...]

    def waves(self, sample_rate: int) -> Waves:
        """The clips' sound, decoded when asked for."""
        return Waves(list(self.paths), sample_rate)

    def targets(self, index: int, first: int, count: int) -> Frames:
        """`frame_targets` of a clip's frames `first` to `first + count`: [count, C]."""
        return frame_targets(self.events[index], self.labels, first, count)


def open_strong(
    annotations: Path,
    audio: Path,
    labels: Sequence[str] | None = None,
    names: Path | None = None,
) -> StrongSet:
    """Annotated clips that lie in `audio`, in the form that `read_truth` reads.

    `labels` are the targets' columns; default: every annotated label, sorted. Events of others
    are left out.
    """
    truth = read_truth(annotations, names)
    files = {Path(path).stem: Path(path) for path in find_audio([str(audio)])}
    clips = [clip for clip in truth if clip in files]
    if not clips:
        raise BadRequest(f"none of the {len(truth)} annotated clips is in {audio}")
    if labels is None:
        labels = sorted({event.label for clip in clips for event in truth[clip]})
    return StrongSet(
        tuple(labels),
        tuple(files[clip] for clip in clips),
        tuple(tuple(event for event in truth[clip] if event.label in labels) for clip in clips),
    )


def frame_targets(
    events: Iterable[TrueEvent], labels: Sequence[str], first: int, count: int
) -> Frames:
    """1 where a label sounds, else 0: [count, C], from frame `first` of the clip on.

    Onset and offset are rounded to frames; the shortest event still has one.
    """
    targets = np.zeros((count, len(labels)), np.float32)
    for event in events:
        begin = round(event.onset_s * 1000 / FRAME_MS)
        end = max(begin + 1, round(event.offset_s * 1000 / FRAME_MS))
        targets[max(begin - first, 0) : max(end - first, 0), labels.index(event.label)] = 1.0
    return targets


def clip_targets(dataset: Dataset, labels: Sequence[str]) -> Frames:
    """A weakly labelled set's targets [N, C]; NaN for labels that it does not know of."""
    known = {label: column for column, label in enumerate(dataset.labels)}
    if not known.keys() & set(labels):
        raise BadRequest(
            f"the weakly labelled set has none of the labels {', '.join(labels[:5])}, ..."
        )
    found = dataset.targets()
    targets = np.full((len(found), len(labels)), np.nan, np.float32)
    for column, label in enumerate(labels):
        if label in known:
            targets[:, column] = found[:, known[label]]
    return targets


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """Teachers' frame probabilities on disk, a float16 .npy [T, C] a clip, named after it."""

    folder: Path
    columns: tuple[int, ...]  # of the wanted labels, in their order

    @classmethod
    def open(cls, folder: Path, labels: Sequence[str]) -> PseudoLabels:
        """Those that `write_pseudo` wrote; they must know every one of these labels."""
        try:
            stored = (folder / LABELS).read_text("utf-8").splitlines()
        except OSError as error:
            raise BadRequest(f"no pseudo-labels in {folder}; write them with `pseudo`") from error
        if missing := set(labels) - set(stored):
            raise BadRequest(f"the pseudo-labels in {folder} lack {', '.join(sorted(missing)[:5])}")
        return cls(folder, tuple(stored.index(label) for label in labels))

    def targets(self, path: Path, first: int, count: int) -> Frames:
        """Probabilities of a clip's frames: [count, C], 0 beyond its end."""
        try:
            stored = np.load(self.folder / f"{path.stem}.npy", mmap_mode="r")
        except OSError as error:
            raise BadRequest(f"no pseudo-labels of {path.name} in {self.folder}") from error
        found = np.asarray(stored[first : first + count][:, list(self.columns)], np.float32)
        return np.pad(found, ((0, count - len(found)), (0, 0)))


def write_pseudo(
    folder: Path, teachers: Sequence[AudioEmbedder], paths: Iterable[Path]
) -> Iterator[Path]:
    """Store the teachers' mean frame probabilities; yields each clip when it is done."""
    labels = teachers[0].labels
    if any(teacher.labels != labels for teacher in teachers):
        raise BadRequest("the teachers have different labels; name some that share theirs")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LABELS).write_text("".join(f"{label}\n" for label in labels), "utf-8")
    for path in paths:
        each = [
            teacher.frame_probabilities(load_audio(path, teacher.sample_rate)).values[0].cpu()
            for teacher in teachers
        ]
        frames = min(len(values) for values in each)  # rates round the last one differently
        mean = np.mean([values[:frames].numpy() for values in each], axis=0)
        np.save(folder / f"{path.stem}.npy", mean.astype(np.float16))
        yield path


def write_mixtures(data: Path, out: Path, folds: str, count: int, seed: int) -> Path:
    """Mixtures of ESC-10 excerpts as `out`/*.wav, annotated in the returned `out`.tsv."""
    out.mkdir(parents=True, exist_ok=True)
    annotations = out.with_name(f"{out.name}.tsv")
    with annotations.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("filename", "onset", "offset", "event_label"))
        for clip in mixtures(data, folds, count, seed, out.name):
            write_wav(out / f"{clip.name}.wav", clip.sound(MIXTURE_RATE), MIXTURE_RATE)
            for event in clip.events:
                label = event.label.replace("_", " ")
                table.writerow((clip.name, event.onset_s, event.offset_s, label))
    return annotations


def shuffled(count: int, size: int, step: int, seed: Sequence[int]) -> list[int]:
    """A step's examples: one shuffle of all of them after the other, cut into batches."""
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: np.random.default_rng([*seed, epoch]).permutation(count)
        for epoch in {place // count for place in places}
    }
    return [int(orders[place // count][place % count]) for place in places]
