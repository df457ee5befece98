"""Training of sound event detection: data, batches, losses, rates, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from embedder import checkpoints
from embedder.audio.decode import load_audio
from embedder.cli import app
from embedder.errors import BadRequest
from embedder.model import AudioEmbedder
from embedder.zoo import (
    MEL_16K,
    MEL_32K,
    DyMNConfig,
    FrameMNConfig,
    MNConfig,
    ModelSpec,
    NetworkConfig,
)
from eval.data.annotations import TrueEvent, read_truth
from eval.data.labelled import Dataset, Example
from eval.data.mixtures import mixtures
from eval.data.strong import (
    PseudoLabels,
    StrongSet,
    clip_targets,
    frame_targets,
    open_strong,
    shuffled,
    write_mixtures,
    write_pseudo,
)
from eval.scores.frame_scores import FrameScores
from eval.training.detector import (
    DetectorConfig,
    DetectorTraining,
    Lessons,
    parameter_groups,
)
from eval.training.detector_network import detector_of, sequence_dim
from eval.training.trainer import Cosine, TrainConfig, Trainer
from tests.shared import SHARED, needs_shared
from tests.sounds import write_wav

RATE = 16_000
LABELS = ("high", "low")
HERTZ = {"high": 3000.0, "low": 300.0}
SECONDS = 1.2
FRAMES = 30


def network(config: NetworkConfig, mel: Any = MEL_16K, labels: Any = None) -> AudioEmbedder:
    torch.manual_seed(0)
    return AudioEmbedder("tiny", ModelSpec(config, mel, ""), labels=labels)


def tone(label: str, seconds: float) -> Any:
    return 0.5 * np.sin(2 * np.pi * HERTZ[label] * np.arange(round(seconds * RATE)) / RATE)


def strong_set(folder: Path, count: int = 8, seed: int = 0) -> StrongSet:
    """Clips of faint noise in which a high and a low tone come and go."""
    rng = np.random.default_rng(seed)
    paths, events = [], []
    for number in range(count):
        wave = 0.003 * rng.standard_normal(round(SECONDS * RATE))
        found = []
        for label in LABELS:
            onset, length = round(rng.uniform(0, 0.7), 2), round(rng.uniform(0.2, 0.5), 2)
            start = round(onset * RATE)
            sound = tone(label, length)
            wave[start : start + len(sound)] += sound
            found.append(TrueEvent(onset, round(onset + length, 2), label))
        paths.append(write_wav(folder / f"clip{seed}-{number}.wav", wave, RATE))
        events.append(tuple(found))
    return StrongSet(LABELS, tuple(paths), tuple(events))


def weak_set(folder: Path) -> Dataset:
    """Tones throughout; a label too many, and "low" unheard of."""
    examples = []
    for number in range(6):
        wave = tone("high", SECONDS) * (0.2 + 0.1 * number)
        path = write_wav(folder / f"weak{number}.wav", wave, RATE)
        examples.append(Example(path, frozenset({"high"})))
    return Dataset(("bird", "high"), tuple(examples), multi_label=True)


def lesson_plan(folder: Path, *, weak: bool = False, pseudo: bool = False) -> Lessons:
    lessons = Lessons(strong_set(folder), weak_set(folder) if weak else None)
    if not pseudo:
        return lessons
    stored = folder / "pseudo"
    stored.mkdir()
    (stored / "labels.txt").write_text("low\nother\nhigh\n")
    rng = np.random.default_rng(7)
    for path in folder.glob("*.wav"):
        np.save(stored / f"{path.stem}.npy", rng.random((FRAMES, 3)).astype(np.float16))
    return replace(lessons, pseudo=PseudoLabels.open(stored, LABELS))


def settings(**changes: Any) -> DetectorConfig:
    return DetectorConfig(**{"epochs": 10, "batch": 8, "seconds": SECONDS, "peak": 3e-3} | changes)


def training(lessons: Lessons, **changes: Any) -> DetectorTraining:
    start = detector_of(network(MNConfig(0.1), MEL_16K), LABELS, "tf", 16)
    return DetectorTraining(start, lessons, settings(**changes))


def trainer(task: DetectorTraining, folder: Path, steps: int) -> Trainer:
    loop = TrainConfig(Cosine(steps, task.config.peak), evaluate_every=5, checkpoint_every=5)
    return Trainer(task, folder, loop, task.optimizer)


def test_frame_targets_round_to_frames_and_keep_the_shortest() -> None:
    events = [TrueEvent(0.10, 0.21, "low"), TrueEvent(0.5, 0.501, "high")]
    found = frame_targets(events, LABELS, 0, 20)
    assert found[:, 1].nonzero()[0].tolist() == [2, 3, 4]  # 100 to 210 ms is 2.5 to 5.25 frames
    assert found[:, 0].nonzero()[0].tolist() == [12]
    assert np.array_equal(frame_targets(events, LABELS, 4, 9), found[4:13])


def test_weak_labels_that_nobody_judged_are_unknown(tmp_path: Path) -> None:
    targets = clip_targets(weak_set(tmp_path), LABELS)
    assert (targets[:, 0] == 1).all()
    assert np.isnan(targets[:, 1]).all()
    with pytest.raises(BadRequest, match="none of the labels"):
        clip_targets(weak_set(tmp_path), ("dog",))


def test_annotations_and_audio_make_a_strong_set(tmp_path: Path) -> None:
    made = strong_set(tmp_path / "audio", 2)
    rows = ["clip\tonset\toffset\tlabel", "missing\t0\t1\tlow", "clip0-1"]
    rows += [f"clip0-0\t{e.onset_s}\t{e.offset_s}\t{e.label}" for e in made.events[0]]
    (tmp_path / "a.tsv").write_text("\n".join(rows))
    found = open_strong(tmp_path / "a.tsv", tmp_path / "audio")
    assert found.labels == LABELS
    assert [path.stem for path in found.paths] == ["clip0-1", "clip0-0"]
    assert found.events == ((), tuple(sorted(made.events[0])))
    only = open_strong(tmp_path / "a.tsv", tmp_path / "audio", ["low"])
    assert {event.label for event in only.events[1]} == {"low"}


def test_every_example_comes_once_an_epoch() -> None:
    seen = [index for step in range(21) for index in shuffled(7, 3, step, [0])]
    for epoch in range(9):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]
    assert len(shuffled(2, 5, 0, [0])) == 5


def test_half_of_each_batch_is_weak(tmp_path: Path) -> None:
    task = training(lesson_plan(tmp_path, weak=True), mixup=0.0)
    weak = task.lessons.weak
    assert weak is not None
    log_mel = task.embedder.frontend
    known = [
        log_mel(torch.from_numpy(load_audio(example.path, RATE))[None])[0]
        for example in weak.examples
    ]
    for step in range(3):
        mel, frames, clips, taught = task.batch(step)
        assert mel.shape == (8, 128, 120)
        assert frames.shape == (4, FRAMES, 2)
        assert not clips[:4].isnan().any()
        assert clips[4:].isnan().tolist() == [[False, True]] * 4
        assert taught.numel() == 0
        alike = [any(torch.allclose(row, one, atol=1e-4) for one in known) for row in mel]
        assert alike == [False] * 4 + [True] * 4


def test_mixing_keeps_the_halves_apart_and_its_labels_with_them(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path, weak=True, pseudo=True)
    plain, mixed = training(lessons, mixup=0.0).batch(0), training(lessons, mixup=5.0).batch(0)
    assert mixed.taught.shape == (8, FRAMES, 2)
    for half in (slice(0, 4), slice(4, 8)):
        # Each mixed example is its own and one of its half, in shares that all its parts have.
        for row in range(half.start, half.stop):
            fits = []
            for other in range(half.start, half.stop):
                apart = plain.mel[row] - plain.mel[other]
                if not apart.any():
                    continue
                share = ((mixed.mel[row] - plain.mel[other]) * apart).sum() / apart.square().sum()
                blend = share * plain.mel[row] + (1 - share) * plain.mel[other]
                taught = share * plain.taught[row] + (1 - share) * plain.taught[other]
                if torch.allclose(blend, mixed.mel[row], atol=1e-4):
                    fits.append(torch.allclose(taught, mixed.taught[row], atol=1e-4))
            assert fits
            assert all(fits)


def test_the_loss_is_a_tenth_labels_and_nine_tenths_pseudo_labels(tmp_path: Path) -> None:
    task = training(lesson_plan(tmp_path, weak=True, pseudo=True))
    batch = task.batch(0)
    loss, metrics = task.loss(batch, 0)
    logits = task.model.detect(batch.mel)  # type: ignore[operator]
    bce = functional.binary_cross_entropy_with_logits
    frames = bce(logits.strong[:4], batch.frames)
    known = ~batch.clips.isnan()
    clips = bce(logits.weak[known], batch.clips[known])
    taught = bce(logits.strong, batch.taught)
    assert torch.allclose(loss, 0.1 * (frames + clips) + 0.9 * taught)
    assert metrics["teacher_loss"] == pytest.approx(taught.item())
    alone, _ = task.loss(batch._replace(taught=torch.empty(0)), 0)
    assert torch.allclose(alone, frames + clips)


def test_pseudo_labels_come_by_name_and_place(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path, pseudo=True)
    assert lessons.pseudo is not None
    path = lessons.strong.paths[0]
    stored = np.load(tmp_path / "pseudo" / f"{path.stem}.npy").astype(np.float32)
    found = lessons.pseudo.targets(path, 20, 20)
    assert np.array_equal(found[:10], stored[20:][:, [2, 0]])
    assert not found[10:].any()
    with pytest.raises(BadRequest, match="lack dog"):
        PseudoLabels.open(tmp_path / "pseudo", ["low", "dog"])
    with pytest.raises(BadRequest, match="no pseudo-labels of"):
        lessons.pseudo.targets(tmp_path / "unheard.wav", 0, 1)


def test_an_ensemble_writes_its_mean(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path / "audio")
    teachers = [training(lessons).embedder, network(FrameMNConfig(0.1, n_classes=2), labels=LABELS)]
    path = lessons.strong.paths[0]
    assert list(write_pseudo(tmp_path / "out", teachers, [path])) == [path]
    wave = load_audio(path, RATE)
    wanted = sum(teacher.frame_probabilities(wave).values[0] for teacher in teachers) / 2
    found = PseudoLabels.open(tmp_path / "out", ["low", "high"]).targets(path, 0, FRAMES)
    assert isinstance(wanted, Tensor)
    assert np.allclose(found, wanted.numpy()[:, [1, 0]], atol=1e-3)


def test_each_stage_before_learns_at_nine_tenths_of_the_next_ones_rate(tmp_path: Path) -> None:
    task = training(lesson_plan(tmp_path / "audio"), backbone_peak=1e-3)
    loop = trainer(task, tmp_path / "run", 20)
    loop.run(stop_at=4)
    share = loop.config.schedule.rate(3) / 3e-3
    rates = [group["lr"] for group in loop.optimizer.param_groups]
    assert rates[:17] == pytest.approx([1e-3 * 0.9**n * share for n in range(17)], rel=1e-9)
    assert rates[17] == pytest.approx(3e-3 * share, rel=1e-9)
    assert len(rates) == 18
    model: Any = task.model
    groups = parameter_groups(model, task.config)
    last = {id(p) for p in model.model["fmn"].features[16].parameters()}
    assert {id(p) for p in groups[0]["params"]} == last
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_a_frozen_backbone_does_not_move(tmp_path: Path) -> None:
    task = training(lesson_plan(tmp_path / "audio"), backbone_peak=0.0)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    trainer(task, tmp_path / "run", 4).run()
    moved = {
        name
        for name, value in task.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert {"strong_head.weight", "weak_head.weight"} < moved
    assert not [name for name in moved if name.startswith("model.")]


def test_a_killed_detector_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path / "audio", weak=True)
    undisturbed, killed, resumed = training(lessons), training(lessons), training(lessons)
    trainer(undisturbed, tmp_path / "a", 10).run()
    trainer(killed, tmp_path / "b", 10).run(stop_at=5)
    again = trainer(resumed, tmp_path / "b", 10)
    assert again.step == 5
    again.run()
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_detector_learns_tones_and_its_checkpoint_finds_them(tmp_path: Path) -> None:
    lessons = lesson_plan(tmp_path / "audio")
    held_out = strong_set(tmp_path / "unmet", 4, seed=1)
    start = detector_of(network(MNConfig(0.1), MEL_16K), LABELS, "gru", 16)
    task = DetectorTraining(start, lessons, settings(backbone_peak=3e-3, mixup=0.0), held_out)
    for module in task.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # random layers have no statistics yet
    loop = trainer(task, tmp_path / "run", 30)
    loop.run()
    assert loop.rows[-1]["frame_loss"] < 0.8 * loop.rows[0]["frame_loss"]
    # Chance is 0.5. So short a training ends between 0.66 and 0.72, as roundings fall.
    assert loop.rows[-1]["mean_frame_auc"] > 0.6
    assert loop.rows[-1]["mean_frame_ap"] > 1.3 * loop.rows[-1]["chance_frame_ap"]
    task.save(tmp_path / "tones.safetensors")
    served = AudioEmbedder.load(str(tmp_path / "tones.safetensors"), device="cpu", runtime="eager")
    assert served.labels == LABELS
    wave = load_audio(held_out.paths[0], RATE)
    ours, theirs = (m.frame_probabilities(wave).values for m in (served, task.embedder))
    assert torch.allclose(ours, theirs, atol=1e-6)
    threshold = float(ours.median()) + 1e-4
    both = [model.events(wave, threshold=threshold)[0] for model in (served, task.embedder)]
    spans = [[(event.label, event.onset_s, event.offset_s) for event in found] for found in both]
    assert spans[0] == spans[1] != []


def test_a_backbone_is_kept_and_so_is_what_fits() -> None:
    mn = network(MNConfig(0.1))
    detector = detector_of(mn, LABELS, "hybrid")
    assert detector.spec.network == FrameMNConfig(0.1, "hybrid", 32, 2)
    ours, theirs = detector.backbone.state_dict(), mn.backbone.state_dict()
    for name in theirs:
        if name.startswith("features."):
            assert torch.equal(ours[f"model.fmn.{name}"], theirs[name])
    same = detector_of(detector, LABELS).backbone.state_dict()
    assert all(torch.equal(same[name], value) for name, value in ours.items())
    other = detector_of(detector, ("a", "b"), seed=1).backbone.state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], other[name])}
    assert changed == {
        f"{head}_head.{part}" for head in ("strong", "weak") for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("width", "dim"), [(0.4, 104), (0.6, 160), (1.0, 256), (2.0, 512), (3.0, 768)]
)
def test_dimensions_scale_as_published(width: float, dim: int) -> None:
    assert sequence_dim(width) == dim


def test_what_no_detector_can_start_from_is_refused() -> None:
    with pytest.raises(BadRequest, match="no MN"):
        detector_of(network(DyMNConfig(0.1), MEL_32K), LABELS)
    with pytest.raises(BadRequest, match="hop by 10 ms"):
        detector_of(network(MNConfig(0.1), replace(MEL_16K, hop=80)), LABELS)
    with pytest.raises(BadRequest, match="does not fit"):
        detector_of(network(MNConfig(0.1, reduced_tail=True)), LABELS)


def test_the_cosine_warms_up_to_its_peak_and_falls_to_nothing() -> None:
    rates = [Cosine(99, 2.0, warm_up=0.25).rate(step) for step in range(99)]
    assert rates[:24] == pytest.approx([2.0 * (step + 1) / 25 for step in range(24)])
    assert rates[24] == 2.0
    assert rates[61] == pytest.approx(2.0 * 0.5 * (1 + np.cos(np.pi * (0.62 - 0.25) / 0.75)))
    assert rates[24:] == sorted(rates[24:], reverse=True)
    assert 0 < rates[-1] < 2e-3


def test_frame_scores_are_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((4000, 3)) < (0.2, 0.5, 0.0)).astype(np.float32)
    found = (1 / (1 + np.exp(-rng.normal(2 * truth - 3, 2)))).astype(np.float32)
    scores = FrameScores(3)
    for part in range(0, 4000, 1000):
        scores.add(found[part : part + 1000], truth[part : part + 1000])
    got = scores.summary()
    pairs = [(truth[:, n], found[:, n]) for n in (0, 1)]  # the third label never occurs
    assert got["mean_frame_auc"] == pytest.approx(np.mean([roc_auc_score(*p) for p in pairs]), 1e-3)
    precision = np.mean([average_precision_score(*p) for p in pairs])
    assert got["mean_frame_ap"] == pytest.approx(precision, abs=2e-3)
    assert got["chance_frame_ap"] == pytest.approx(truth[:, :2].mean(), abs=1e-6)
    assert FrameScores(1).summary() == {}
    undecided = FrameScores(3)
    undecided.add(np.full_like(found, 0.3), truth)
    assert undecided.summary()["mean_frame_auc"] == pytest.approx(0.5)


@needs_shared
def test_mixtures_are_written_as_they_were_made(tmp_path: Path) -> None:
    data = SHARED / "audio"
    made = mixtures(data, "4", 2, 5, "test")
    annotations = write_mixtures(data, tmp_path / "test", "4", 2, 5)
    truth = read_truth(annotations)
    assert list(truth) == [clip.name for clip in made] == ["test000", "test001"]
    for clip in made:
        events = [event._replace(label=event.label.replace("_", " ")) for event in clip.events]
        assert truth[clip.name] == sorted(events)
        wave = load_audio(tmp_path / "test" / f"{clip.name}.wav", 32_000)
        assert np.abs(wave - clip.sound(32_000)).max() < 1e-3
    with pytest.raises(BadRequest, match="folds '9'"):
        mixtures(data, "9", 1, 0, "train")


def test_a_detector_by_commands(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    made = strong_set(tmp_path / "audio", 4)
    rows = ["clip\tonset\toffset\tlabel"]
    for path, events in zip(made.paths, made.events, strict=True):
        rows += [f"{path.stem}\t{e.onset_s}\t{e.offset_s}\t{e.label}" for e in events]
    (tmp_path / "a.tsv").write_text("\n".join(rows))
    weak = tmp_path / "weak" / "high"
    path = write_wav(weak / "1-1-A.wav", tone("high", 1.0), RATE)
    write_wav(weak / "4-1-A.wav", tone("high", 1.0), RATE)
    start = network(MNConfig(0.1))
    checkpoints.save(
        tmp_path / "mn.safetensors", start.spec, start.backbone.state_dict(), start.labels
    )
    words = (
        "train",
        "detector",
        tmp_path / "a.tsv",
        tmp_path / "audio",
        "--batch",
        4,
        "--device",
        "cpu",
    )
    score = ("--test", tmp_path / "a.tsv", "--test-audio", tmp_path / "audio")
    first = tmp_path / "first" / "first.safetensors"
    run(
        *words, "--model", tmp_path / "mn.safetensors", "--out", first.parent, "--epochs", 1, *score
    )
    run(
        "train",
        "pseudo",
        tmp_path / "audio",
        path,
        "--teacher",
        first,
        "--out",
        tmp_path / "pseudo",
    )
    more = ("--weak", tmp_path / "weak", "--weak-but", "4", "--pseudo", tmp_path / "pseudo")
    output = run(
        *words,
        "--model",
        first,
        "--sequence",
        "gru",
        "--dim",
        8,
        *more,
        "--backbone-rate",
        0,
        "--epochs",
        1,
        "--out",
        tmp_path / "second",
    )
    assert "teacher_loss" in output
    second = AudioEmbedder.load(str(tmp_path / "second" / "second.safetensors"), device="cpu")
    assert second.labels == LABELS
    assert second.spec.network == FrameMNConfig(0.1, "gru", 8, 2)
    assert "mean_frame_auc" in (tmp_path / "first" / "log.csv").read_text()


@pytest.mark.slow
@needs_shared
def test_a_detector_finds_events_of_unmet_mixtures(tmp_path: Path) -> None:
    """Minutes: the bundled model's convolutions, folds 1 to 3 to learn from, fold 4 to find."""
    data = SHARED / "audio"
    train, test = tmp_path / "train", tmp_path / "test"
    learnt = open_strong(write_mixtures(data, train, "123", 100, 100), train)
    held_out = open_strong(write_mixtures(data, test, "4", 20, 2), test, learnt.labels)
    start = detector_of(AudioEmbedder.load("sprout04", device="cpu"), learnt.labels, "tf")
    config = DetectorConfig(epochs=16, peak=2e-3, backbone_peak=2e-3, batch=8)
    task = DetectorTraining(start, Lessons(learnt), config, held_out)
    loop = TrainConfig(task.lessons.schedule(config), evaluate_every=100, checkpoint_every=100)
    last = Trainer(task, tmp_path / "run", loop, task.optimizer).run()
    assert last["mean_frame_auc"] > 0.8
    assert last["mean_frame_ap"] > 3 * last["chance_frame_ap"]
