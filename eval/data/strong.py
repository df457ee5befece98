"""Strongly labelled sound: frame targets, stored pseudo-labels, mixtures on disk.

"Strong" labels say when a sound begins and ends; "weak" ones, that it is in the clip.

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
    """Clips whose events are known from onset to offset; `events` are those of each path."""

    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    events: tuple[tuple[TrueEvent, ...], ...]

    def waves(self, sample_rate: int) -> Waves:
        """Return the clips' sound, each decoded when it is asked for."""
        return Waves(list(self.paths), sample_rate)

    def targets(self, index: int, first: int, count: int) -> Frames:
        """Return `frame_targets` of clip `index`, frames `first` to `first + count`: [count, C]."""
        return frame_targets(self.events[index], self.labels, first, count)


def open_strong(
    annotations: Path,
    audio: Path,
    labels: Sequence[str] | None = None,
    names: Path | None = None,
) -> StrongSet:
    """Open the annotated clips that lie in the folder `audio`.

    Parameters
    ----------
    annotations, names : what `read_truth` reads.
    audio : folder of the clips; a file's stem is its clip's name.
    labels : the columns of the targets; default: every annotated label, sorted. Events with
        another label are left out.
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
    """Return 1 where a label sounds, else 0: [count, C], from frame `first` of the clip on.

    Onset and offset are rounded to frames, but even the shortest event has one frame.
    """
    targets = np.zeros((count, len(labels)), np.float32)
    for event in events:
        begin = round(event.onset_s * 1000 / FRAME_MS)
        end = max(begin + 1, round(event.offset_s * 1000 / FRAME_MS))
        targets[max(begin - first, 0) : max(end - first, 0), labels.index(event.label)] = 1.0
    return targets


def clip_targets(dataset: Dataset, labels: Sequence[str]) -> Frames:
    """Return the targets [N, C] of a weakly labelled set; NaN for labels that it does not have."""
    columns = {label: column for column, label in enumerate(dataset.labels)}
    if not columns.keys() & set(labels):
        raise BadRequest(
            f"the weakly labelled set has none of the labels {', '.join(labels[:5])}, ..."
        )
    own_targets = dataset.targets()
    targets = np.full((len(own_targets), len(labels)), np.nan, np.float32)
    for column, label in enumerate(labels):
        if label in columns:
            targets[:, column] = own_targets[:, columns[label]]
    return targets


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """Teachers' frame probabilities on disk: CLIP.npy, float16 [T, C], for each clip."""

    folder: Path
    columns: tuple[int, ...]  # where each of the student's labels stands in the files

    @classmethod
    def open(cls, folder: Path, labels: Sequence[str]) -> PseudoLabels:
        """Open what `write_pseudo` wrote; it must hold every one of these labels."""
        try:
            stored = (folder / LABELS).read_text("utf-8").splitlines()
        except OSError as error:
            raise BadRequest(f"no pseudo-labels in {folder}; write them with `pseudo`") from error
        if missing := set(labels) - set(stored):
            raise BadRequest(f"the pseudo-labels in {folder} lack {', '.join(sorted(missing)[:5])}")
        return cls(folder, tuple(stored.index(label) for label in labels))

    def targets(self, path: Path, first: int, count: int) -> Frames:
        """Return the probabilities of a clip's frames: [count, C], 0 beyond its end."""
        try:
            stored = np.load(self.folder / f"{path.stem}.npy", mmap_mode="r")
        except OSError as error:
            raise BadRequest(f"no pseudo-labels of {path.name} in {self.folder}") from error
        frames = np.asarray(stored[first : first + count][:, list(self.columns)], np.float32)
        return np.pad(frames, ((0, count - len(frames)), (0, 0)))


def write_pseudo(
    folder: Path, teachers: Sequence[AudioEmbedder], paths: Iterable[Path]
) -> Iterator[Path]:
    """Store the mean of the teachers' frame probabilities; yield each path when it is done."""
    labels = teachers[0].labels
    if any(teacher.labels != labels for teacher in teachers):
        raise BadRequest("the teachers have different labels; name some that share theirs")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LABELS).write_text("".join(f"{label}\n" for label in labels), "utf-8")
    for path in paths:
        probabilities = [
            teacher.frame_probabilities(load_audio(path, teacher.sample_rate)).values[0].cpu()
            for teacher in teachers
        ]
        # Teachers of different sample rates may differ by one frame at the end.
        frames = min(len(values) for values in probabilities)
        mean = np.mean([values[:frames].numpy() for values in probabilities], axis=0)
        np.save(folder / f"{path.stem}.npy", mean.astype(np.float16))
        yield path


def write_mixtures(data: Path, out: Path, folds: str, count: int, seed: int) -> Path:
    """Write `mixtures` as `out`/*.wav at 32 kHz, their events as `out`.tsv; return the latter."""
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
    """Return the indices of a step's `size` examples, out of `count`.

    All examples are shuffled anew in each epoch; the epochs, one after the other, are cut into
    batches.
    """
    positions = range(step * size, (step + 1) * size)
    orders = {
        epoch: np.random.default_rng([*seed, epoch]).permutation(count)
        for epoch in {position // count for position in positions}
    }
    return [int(orders[position // count][position % count]) for position in positions]
