"""Scores of sound event detection, by the field's own libraries, on the settings of the papers.

PSDS1 (arXiv 2503.11373, section III-C; Ebbers et al., ICASSP 2022) from frame probabilities, and
segment and event F1 (Mesaros et al., 2016) from event lists.

Axes: T frames of 40 ms, N labels. The libraries are the extra `sed`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

import numpy as np
import typer
from numpy.typing import NDArray

from embedder.defaults import DEFAULT_DETECTOR, FRAME_MS, MEDIAN
from embedder.errors import BadRequest
from embedder.extras import require

if TYPE_CHECKING:
    from embedder.events.finder import Event
    from embedder.model import AudioEmbedder

# PSDS1: detection and ground truth intersection, no cross triggers, instability across classes.
PSDS1: Final = {
    "dtc_threshold": 0.7,
    "gtc_threshold": 0.7,
    "alpha_ct": 0.0,
    "alpha_st": 1.0,
    "max_efpr": 100.0,
    "unit_of_time": "hour",
}
SEGMENT_S: Final = 1.0
COLLAR_S: Final = 0.2  # of onsets; of offsets this or the share of the event's length
OFFSET_SHARE: Final = 0.2
LIBRARIES: Final = ("sed_scores_eval", "sed_eval", "dcase_util")
_FRAME_S: Final = FRAME_MS / 1000


class TrueEvent(NamedTuple):
    """An annotated sound, in seconds of its clip."""

    onset_s: float
    offset_s: float
    label: str


Truth: TypeAlias = Mapping[str, Sequence[TrueEvent]]  # by clip


def read_truth(path: Path, names: Path | None = None) -> dict[str, list[TrueEvent]]:
    """Annotations in AudioSet Strong's form, by clip, in order.

    Parameters
    ----------
    path : tab-separated, with a header: clip, onset, offset in seconds, label; nothing after the
        clip means that nothing sounds in it.
    names : comma-separated machine id and name, where labels are machine ids.
    """
    called: dict[str, str] = {}
    if names is not None:
        with names.open(encoding="utf-8", newline="") as file:
            called = {row[0]: row[1] for row in csv.reader(file)}
    truth: dict[str, list[TrueEvent]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows, None)
        for number, row in enumerate(rows, 2):
            events = truth.setdefault(row[0], []) if row else []
            if len([cell for cell in row if cell]) > 1:
                events.append(_true_event(row, called, f"{path}, line {number}"))
    return {clip: merged(events) for clip, events in truth.items()}


def merged(events: Iterable[TrueEvent]) -> list[TrueEvent]:
    """The same in order of onset, those of one label that touch or overlap as one."""
    last: dict[str, TrueEvent] = {}
    done: list[TrueEvent] = []
    for event in sorted(events):
        before = last.get(event.label)
        if before is not None and event.onset_s <= before.offset_s:
            last[event.label] = before._replace(offset_s=max(before.offset_s, event.offset_s))
            continue
        if before is not None:
            done.append(before)
        last[event.label] = event
    return sorted([*done, *last.values()])


def evaluation_labels(labels: Sequence[str], truth: Truth) -> tuple[str, ...]:
    """Labels of the model that the annotations have too: 407 of AudioSet Strong's 447."""
    annotated = {event.label for events in truth.values() for event in events}
    return tuple(label for label in labels if label in annotated)


def psds1(
    frames: Mapping[str, NDArray[np.float32]],
    labels: Sequence[str],
    truth: Truth,
    seconds: Mapping[str, float],
) -> float:
    """PSDS1 in [0, 1] over `evaluation_labels`; unitless, the papers print it times 100.

    Parameters
    ----------
    frames : probabilities [T, N] of each clip, after the median filter.
    labels : names of the N columns.
    truth : events of the same clips.
    seconds : length of each clip.
    """
    library = _library("sed_scores_eval")
    chosen = evaluation_labels(labels, {clip: truth[clip] for clip in frames})
    if not chosen:
        raise BadRequest("the annotations name none of the model's labels; check their names")
    columns = [labels.index(label) for label in chosen]
    scores = {
        clip: _score_table(values[:, columns], chosen, seconds[clip])
        for clip, values in frames.items()
    }
    wanted = set(chosen)
    reference = {
        clip: [tuple(event) for event in truth[clip] if event.label in wanted] for clip in frames
    }
    lengths = {clip: seconds[clip] for clip in frames}
    score, *_ = library.intersection_based.psds(scores, reference, lengths, **PSDS1)
    return float(score)


def _score_table(values: NDArray[np.float32], labels: Sequence[str], seconds: float) -> Any:
    """The library's table of scores; the last frame ends with the clip."""
    edges = np.minimum(np.arange(len(values) + 1) * _FRAME_S, seconds)
    scores = import_module("sed_scores_eval.base_modules.scores")
    return scores.create_score_dataframe(values.astype(np.float64), edges, list(labels))


def f1(
    found: Mapping[str, Sequence[Event]],
    labels: Sequence[str],
    truth: Truth,
    seconds: Mapping[str, float],
) -> dict[str, float]:
    """Segment and event F1 in [0, 1] over `evaluation_labels`: of all, and mean of the labels.

    Segments of 1 s. An event is right with its onset within 0.2 s and its offset within 0.2 s or
    a fifth of its length. NaN where there is nothing to find and nothing found.
    """
    metrics = _library("sed_eval").sound_event
    containers = _library("dcase_util").containers
    chosen = list(evaluation_labels(labels, {clip: truth[clip] for clip in found}))
    judges = {
        "segment_f1": metrics.SegmentBasedMetrics(chosen, time_resolution=SEGMENT_S),
        "event_f1": metrics.EventBasedMetrics(
            chosen, t_collar=COLLAR_S, percentage_of_length=OFFSET_SHARE
        ),
    }

    def listed(clip: str, events: Iterable[Event | TrueEvent]) -> Any:
        return containers.MetaDataContainer(
            [
                {
                    "filename": clip,
                    "onset": event.onset_s,
                    "offset": event.offset_s,
                    "event_label": event.label,
                }
                for event in events
                if event.label in chosen
            ]
        )

    for clip, events in found.items():
        reference, estimated = listed(clip, truth[clip]), listed(clip, events)
        judges["segment_f1"].evaluate(reference, estimated, seconds[clip])
        judges["event_f1"].evaluate(reference, estimated)
    scores: dict[str, float] = {}
    for name, judge in judges.items():
        overall = judge.results_overall_metrics()
        mean = judge.results_class_wise_average_metrics()
        scores[name] = float(overall["f_measure"]["f_measure"])
        scores[f"{name}_macro"] = float(mean["f_measure"]["f_measure"])
    return scores


def evaluate(model: AudioEmbedder, clips: Mapping[str, Path], truth: Truth) -> dict[str, float]:
    """Every score of a detector on annotated clips, given by name and file."""
    from embedder.audio.decode import load_audio
    from embedder.events.finder import EventFinder, EventRules, MedianFilter, in_order

    rules = EventRules.of(model.labels)
    frames: dict[str, NDArray[np.float32]] = {}
    found: dict[str, list[Event]] = {}
    seconds: dict[str, float] = {}
    for clip, path in clips.items():
        wave = load_audio(path, model.sample_rate)
        values = model.frame_probabilities(wave).values[0].cpu().numpy()
        smooth, finder = MedianFilter(MEDIAN), EventFinder(rules)
        frames[clip] = np.concatenate([smooth.push(values), smooth.finish()])
        seconds[clip] = len(wave) / model.sample_rate
        found[clip] = in_order([*finder.push(values), *finder.finish(seconds[clip])])
    score = psds1(frames, model.labels, truth, seconds)
    return {"psds1": score, **f1(found, model.labels, truth, seconds)}


def score(
    annotations: Annotated[Path, typer.Argument(help="Tab-separated: clip, onset, offset, label.")],
    audio: Annotated[Path, typer.Argument(help="Folder of the clips, files named as they are.")],
    model: Annotated[str, typer.Option(help="A model that finds events.")] = DEFAULT_DETECTOR,
    weights: Annotated[Path | None, typer.Option(help="Its checkpoint.")] = None,
    names: Annotated[Path | None, typer.Option(help="CSV of machine id and label.")] = None,
) -> None:
    """PSDS1, segment and event F1 of a detector on annotated clips."""
    from embedder.bulk.inputs import find_audio
    from embedder.model import AudioEmbedder

    require(*LIBRARIES)
    truth = read_truth(annotations, names)
    files = {Path(path).stem: Path(path) for path in find_audio([str(audio)])}
    clips = {clip: files[clip] for clip in truth if clip in files}
    if not clips:
        raise BadRequest(f"none of the {len(truth)} annotated clips is in {audio}")
    scores = evaluate(AudioEmbedder.load(model, weights), clips, truth)
    for name, value in scores.items():
        typer.echo(f"{name} {100 * value:.2f}")
    typer.echo(f"{len(clips)} of {len(truth)} annotated clips", err=True)


def _true_event(row: Sequence[str], called: Mapping[str, str], where: str) -> TrueEvent:
    try:
        _, onset, offset, label = row
        return TrueEvent(float(onset), float(offset), called.get(label, label))
    except ValueError as error:
        raise BadRequest(f"{where}: not clip, onset, offset, label, separated by tabs") from error


def _library(name: str) -> Any:
    require(name)
    return import_module(name)
