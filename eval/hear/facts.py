"""What HEAR published: its 19 tasks, the leaderboard, and how scores are made comparable.

`leaderboard.csv` holds the scores of the official leaderboard under our names of the tasks.
A score is normalised by the best that a submission to the HEAR 2021 challenge reached on its task
(arXiv 2303.01879, section III-A).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final, Literal

Group = Literal["Speech", "Music", "General"]
GROUPS: Final[tuple[Group, ...]] = ("Speech", "Music", "General")
CHALLENGE: Final = "HEAR 2021"


@dataclass(frozen=True, slots=True)
class PublishedTask:
    """One of HEAR's 19 tasks.

    `folders` are the names that it is distributed under. The score of a task with several folders
    is the mean of theirs.
    """

    title: str
    group: Group
    metric: str
    folders: tuple[str, ...]


def _task(title: str, group: Group, metric: str, *folders: str) -> PublishedTask:
    return PublishedTask(title, group, metric, folders)


# The paper names the three groups, but does not list their tasks. This division follows from what
# it says about single tasks.
# fmt: off
TASKS: Final[Mapping[str, PublishedTask]] = MappingProxyType({
    "crema_d": _task("CREMA-D", "Speech", "top1_acc", "tfds_crema_d-1.0.0-full"),
    "libricount": _task("LibriCount", "Speech", "top1_acc", "libricount-v1.0.0-hear2021-full"),
    "speech_commands_5h": _task("Speech Commands 5h", "Speech", "top1_acc",
                                "speech_commands-v0.0.2-5h"),
    "speech_commands_full": _task("Speech Commands", "Speech", "top1_acc",
                                  "speech_commands-v0.0.2-full"),
    "vox_lingua": _task("VoxLingua107", "Speech", "top1_acc", "vox_lingua_top10-hear2021-full"),
    "beijing_opera": _task("Beijing Opera", "Music", "top1_acc",
                           "beijing_opera-v1.0-hear2021-full"),
    "gtzan_genre": _task("GTZAN Genre", "Music", "top1_acc", "tfds_gtzan-1.0.0-full"),
    "gtzan_music_speech": _task("GTZAN Music/Speech", "Music", "top1_acc",
                                "tfds_gtzan_music_speech-1.0.0-full"),
    "maestro": _task("Maestro 5h", "Music", "event_onset_50ms_fms", "maestro-v3.0.0-5h"),
    "mridangam_stroke": _task("Mridangam Stroke", "Music", "top1_acc",
                              "mridangam_stroke-v1.5-full"),
    "mridangam_tonic": _task("Mridangam Tonic", "Music", "top1_acc", "mridangam_tonic-v1.5-full"),
    "nsynth_50h": _task("NSynth Pitch 50h", "Music", "pitch_acc", "nsynth_pitch-v2.2.3-50h"),
    "nsynth_5h": _task("NSynth Pitch 5h", "Music", "pitch_acc", "nsynth_pitch-v2.2.3-5h"),
    "beehive": _task("Beehive", "General", "aucroc",
                     "beehive_states_fold0-v2-full", "beehive_states_fold1-v2-full"),
    "dcase2016": _task("DCASE 2016", "General", "event_onset_200ms_fms",
                       "dcase2016_task2-hear2021-full"),
    "esc50": _task("ESC-50", "General", "top1_acc", "esc50-v2.0.0-full"),
    "fsd50k": _task("FSD50K", "General", "mAP", "fsd50k-v1.0-full"),
    "gunshot": _task("Gunshot", "General", "top1_acc", "gunshot_triangulation-v1.0-full"),
    "vocal_imitation": _task("Vocal Imitation", "General", "mAP", "vocal_imitation-v1.1.3-full"),
})
# fmt: on


@dataclass(frozen=True, slots=True)
class Submission:
    """A row of the leaderboard; `scores` holds the tasks that it has, by our names."""

    model: str
    date: str
    scores: Mapping[str, float]


@cache
def leaderboard() -> tuple[Submission, ...]:
    """Return all rows, in the order of the official table."""
    text = resources.files("eval.hear").joinpath("leaderboard.csv").read_text("utf-8")
    return tuple(
        Submission(
            row["model"], row["date"], {name: float(row[name]) for name in TASKS if row[name]}
        )
        for row in csv.DictReader(text.splitlines())
    )


@cache
def best(task: str) -> float:
    """Return the best score on a task in the HEAR 2021 challenge."""
    return max(
        row.scores[task] for row in leaderboard() if row.date == CHALLENGE and task in row.scores
    )


def known(folder: str) -> str | None:
    """Return our name of the task that HEAR distributes as this folder, or None."""
    return next((name for name, task in TASKS.items() if folder in task.folders), None)


def normalised(task: str, score: float) -> float:
    """Return the score as a share of the best one in the challenge."""
    return score / best(task)
