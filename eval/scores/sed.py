"""Score sound event detection with the field's libraries and the papers' settings.

PSDS1 (arXiv 2503.11373, section III-C; Ebbers et al., ICASSP 2022) is computed from probabilities
of frames, segment F1 and event F1 (Mesaros et al., 2016) from lists of events. The extra `sed`
installs the libraries.

Axes: T frames of 40 ms, N labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from embedder.defaults import DEFAULT_DETECTOR, FRAME_MS, MEDIAN
from embedder.errors import BadRequest
from embedder.extras import require
from eval.data.annotations import TrueEvent, Truth, read_truth

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
COLLAR_S: Final = 0.2  # that an onset may be off; an offset this or a share of the length
OFFSET_SHARE: Final = 0.2
LIBRARIES: Final = ("sed_scores_eval", "sed_eval", "dcase_util")
_FRAME_S: Final = FRAME_MS / 1000


def evaluation_labels(labels: Sequence[str], truth: Truth) -> tuple[str, ...]:
    """The model's labels that occur in the annotations: 407 of 447 in AudioSet Strong."""
    annotated = {event.label for events in truth.values() for event in events}
    return tuple(label for label in labels if label in annotated)


def psds1(
    frames: Mapping[str, NDArray[np.float32]],
    labels: Sequence[str],
    truth: Truth,
    seconds: Mapping[str, float],
) -> float:
    """PSDS1 in [0, 1] over `evaluation_labels`; the papers print it times 100.

    Parameters
    ----------
    frames : probabilities [T, N] of each clip, after the median filter.
    labels : names of the N columns.
    truth : events of the same clips.
    seconds : the length of each clip.
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
    names = set(chosen)
    reference = {
        clip: [tuple(event) for event in truth[clip] if event.label in names] for clip in frames
    }
    lengths = {clip: seconds[clip] for clip in frames}
    score, *_ = library.intersection_based.psds(scores, reference, lengths, **PSDS1)
    return float(score)


def _score_table(values: NDArray[np.float32], labels: Sequence[str], seconds: float) -> Any:
    """The probabilities as a table of sed_scores_eval; the last frame ends with the clip."""
    edges = np.minimum(np.arange(len(values) + 1) * _FRAME_S, seconds)
    scores = import_module("sed_scores_eval.base_modules.scores")
    return scores.create_score_dataframe(values.astype(np.float64), edges, list(labels))


def f1(
    detected: Mapping[str, Sequence[Event]],
    labels: Sequence[str],
    truth: Truth,
    seconds: Mapping[str, float],
) -> dict[str, float]:
    """Segment and event F1 in [0, 1] over `evaluation_labels`: of all events, and means of labels.

    A segment lasts 1 s. An event is right if its onset is off by at most 0.2 s, and its offset by
    at most 0.2 s or a fifth of its length. NaN if there is no event, annotated or detected.
    """
    metrics = _library("sed_eval").sound_event
    containers = _library("dcase_util").containers
    chosen = list(evaluation_labels(labels, {clip: truth[clip] for clip in detected}))
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

    for clip, events in detected.items():
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
    """All scores of a detector on annotated clips; `clips` are files by name."""
    from embedder.audio.decode import load_audio
    from embedder.events.finder import EventFinder, EventRules, MedianFilter, in_order

    rules = EventRules.of(model.labels)
    frames: dict[str, NDArray[np.float32]] = {}
    detected: dict[str, list[Event]] = {}
    seconds: dict[str, float] = {}
    for clip, path in clips.items():
        wave = load_audio(path, model.sample_rate)
        values = model.frame_probabilities(wave).values[0].cpu().numpy()
        smooth, finder = MedianFilter(MEDIAN), EventFinder(rules)
        frames[clip] = np.concatenate([smooth.push(values), smooth.finish()])
        seconds[clip] = len(wave) / model.sample_rate
        detected[clip] = in_order([*finder.push(values), *finder.finish(seconds[clip])])
    score = psds1(frames, model.labels, truth, seconds)
    return {"psds1": score, **f1(detected, model.labels, truth, seconds)}


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


def _library(name: str) -> Any:
    require(name)
    return import_module(name)
