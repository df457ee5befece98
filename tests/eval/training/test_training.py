"""The training loop, its objectives and their losses, on sound made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from embedder.model import AudioEmbedder
from embedder.networks.dymn import DyMN
from embedder.networks.mn import MN
from embedder.zoo import MEL_32K, DyMNConfig, MNConfig, ModelSpec
from eval.data import corpus, synth
from eval.data.labelled import Dataset, Example
from eval.data.mixing import MixConfig, Mixer
from eval.scores.metrics import Metrics
from eval.training.augment import AugmentConfig, Mixup
from eval.training.distill import (
    DistillConfig,
    Material,
    TagDistillation,
    annealing,
    ensemble_logits,
    importance,
    load_logits,
    peak_rate,
    save_logits,
    save_student,
    top_labels,
)
from eval.training.features import FeatureConfig, FeatureDistillation
from eval.training.finetune import Finetune, FinetuneConfig, label_loss
from eval.training.heldout import HeldOut, crops
from eval.training.norms import settle
from eval.training.soap import soap
from eval.training.trainer import CHECKPOINT, LOG, Schedule, TrainConfig, Trainer, adam
from tests.sounds import write_wav

RATE = 32_000
TINY = MNConfig(width=0.1)


class Regression:
    """An objective small enough to run twice; dropout draws random numbers at every step."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        layers = (nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 1))
        self.model: nn.Module = nn.Sequential(*layers)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(32, 8)).astype(np.float32))
        return x, x[:, :1] - 2 * x[:, 1:2]

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        x, y = batch
        return (self.model(x) - y).square().mean(), {"constant": 1.0}

    def evaluate(self) -> Metrics:
        x, y = self.batch(10_000)
        return {"error": float((self.model(x) - y).square().mean())}


def config(steps: int, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"evaluate_every": 10, "checkpoint_every": 10}
    return TrainConfig(Schedule(steps, 1e-2), **settings | changes)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> corpus.Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return corpus.build([], folder, synthetic=14)


def tones(folder: Path, per_class: int = 6) -> Dataset:
    """Low and high tones of half a second, two folds."""
    examples = []
    rng = np.random.default_rng(0)
    for number in range(2 * per_class):
        label, base = (("low", 200.0), ("high", 4000.0))[number % 2]
        t = np.arange(RATE // 2) / RATE
        wave = 0.3 * np.sin(2 * np.pi * base * rng.uniform(0.8, 1.25) * t)
        path = write_wav(folder / f"{number}.wav", wave + 0.01 * rng.standard_normal(len(t)), RATE)
        examples.append(Example(path, frozenset({label}), "ab"[number % 4 // 2]))
    return Dataset(("high", "low"), tuple(examples))


@pytest.mark.parametrize("optimizer", [adam, soap])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, optimizer: Any) -> None:
    undisturbed = Regression()
    Trainer(undisturbed, tmp_path / "a", config(60), optimizer).run()
    # Killed between two checkpoints: what came after the last one is done again.
    killed = Regression()
    trainer = Trainer(killed, tmp_path / "b", config(60), optimizer)
    trainer.save = lambda: None if trainer.step == 33 else Trainer.save(trainer)  # type: ignore[method-assign]
    trainer.run(stop_at=33)
    resumed = Regression()
    again = Trainer(resumed, tmp_path / "b", config(60), optimizer)
    assert again.step == 30
    last = again.run()
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    rows = [(tmp_path / run / LOG).read_text().splitlines() for run in "ab"]
    assert [len(run) for run in rows] == [7, 7]
    assert last["error"] < 1.0


def test_a_kill_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(Regression(), tmp_path, config(20))
    trainer.run()
    before = (tmp_path / CHECKPOINT).read_bytes()

    def torn(state: Any, path: Path) -> None:  # noqa: ARG001
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_the_schedule_warms_up_holds_ramps_down_and_ends_at_one_percent() -> None:
    schedule = Schedule(200, 2e-3, 0.04, 0.36, 0.475)
    rates = [schedule.rate(step) for step in range(200)]
    assert rates[0] == pytest.approx(2e-3 * np.exp(-5), rel=1e-4)
    assert rates[:9] == sorted(rates[:9])
    assert rates[8:80] == [2e-3] * 72
    assert rates[80:175] == sorted(rates[80:175], reverse=True)
    assert rates[175:] == pytest.approx([2e-5] * 25)


def test_a_mixture_follows_from_its_step(sounds: corpus.Corpus) -> None:
    mixer = Mixer(sounds, MixConfig(frames=400), seed=3)
    for step in range(8):
        mel = mixer.batch(step)
        assert mel.shape[1] == 128
        assert mel.isfinite().all()
        assert torch.equal(mel, Mixer(sounds, MixConfig(frames=400), seed=3).batch(step))


def test_mel_power_survives_the_corpus(sounds: corpus.Corpus) -> None:
    from embedder.frontend import LogMel
    from embedder.zoo import MEL_32K

    name, wave = next(synth.sounds(1))
    clip = next(clip for clip in sounds.clips if clip.path == name)
    stored = corpus.to_log_mel(torch.from_numpy(sounds.power(clip))).T
    exact = LogMel(MEL_32K)(torch.from_numpy(wave[: 30 * RATE])[None])[0]
    assert (stored - exact).abs().max() < 2e-3


def test_feature_distillation_comes_closer_to_its_teacher(
    sounds: corpus.Corpus, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    teacher, student = MN(TINY), MN(TINY)
    for module in teacher.modules():  # random weights need the statistics of what they see
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    teacher(crops(sounds))
    held_out = HeldOut(teacher.eval(), crops(sounds)[:6], ("b5", "logits"))
    steps = 60
    task = FeatureDistillation(
        student,
        teacher,
        Mixer(sounds, MixConfig(frames=320, lengths=((80, 1.0),))),
        FeatureConfig(steps, stitched_until=1.0, own_from=2.0, statistics=4, freeze_norm=1.0),
        held_out.compare,
    )
    task.start_from_statistics()
    trainer = Trainer(task, tmp_path, config(steps, evaluate_every=20), soap)
    trainer.run()
    assert trainer.rows[-1]["map_error"] < 0.9 * trainer.rows[0]["map_error"]
    assert held_out.compare(teacher)["error_b5"] == 0.0


@pytest.mark.parametrize("online", [True, False])
def test_tag_distillation_falls(tmp_path: Path, online: bool) -> None:
    data = tones(tmp_path)
    torch.manual_seed(0)
    teacher = AudioEmbedder.build("mn01_as")
    student = AudioEmbedder.build("mn01_as")
    with torch.no_grad():  # a random teacher is sure of nothing; make it sure
        teacher.backbone.classifier[-1].bias.normal_(0, 3)
    paths = [example.path for example in data.examples]
    logits = None
    if not online:
        save_logits(tmp_path / "l.npz", paths, ensemble_logits([teacher, teacher], paths))
        stored, logits = load_logits(tmp_path / "l.npz")
        assert stored == paths
    targets = np.zeros((len(paths), 527), np.float32)
    targets[:, 3] = 1
    material = Material(data.waves(RATE), targets, logits)
    task = TagDistillation(
        student, material, DistillConfig(batch=6, seconds=0.5), teacher if online else None
    )
    trainer = Trainer(task, tmp_path / "run", config(24, evaluate_every=8))
    trainer.run()
    assert trainer.rows[-1]["teacher_loss"] < 0.9 * trainer.rows[0]["teacher_loss"]
    assert {"label_loss", "loss"} <= set(trainer.rows[-1])


def dynamic_task(data: Dataset, dymn: DyMNConfig) -> TagDistillation:
    """A little DyMN that shall think of every clip as a sure teacher would."""
    torch.manual_seed(0)
    student = AudioEmbedder("little", ModelSpec(dymn, MEL_32K, ""))
    taught = np.random.default_rng(0).normal(0, 3, (1, 527)).astype(np.float32)
    material = Material(data.waves(RATE), None, taught.repeat(len(data.examples), 0))
    return TagDistillation(student, material, DistillConfig(batch=4, seconds=0.5))


def annealed(steps: int, every: int = 4) -> TrainConfig:
    temperature = annealing(DyMNConfig(0.1))
    return TrainConfig(
        Schedule(steps, 1e-2),
        evaluate_every=every,
        checkpoint_every=every,
        temperature=temperature,
    )


def test_a_dymn_learns_while_its_temperature_falls_from_30_to_1(tmp_path: Path) -> None:
    data = tones(tmp_path, 2)
    task = dynamic_task(data, DyMNConfig(0.1))
    model: Any = task.model
    seen: list[float] = []
    once = task.loss

    def watched(batch: Any, step: int) -> tuple[Tensor, Metrics]:
        assert {part.temperature for part in model._attentions()} == {model.temperature}
        seen.append(model.temperature)
        return once(batch, step)

    task.loss = watched  # type: ignore[method-assign]
    trainer = Trainer(task, tmp_path / "run", annealed(40))
    trainer.run()
    # 30 of 200 epochs are 6 of 40 steps.
    assert seen == pytest.approx([30 - 29 * step / 6 for step in range(6)] + [1.0] * 34)
    assert seen[0] == 30.0
    assert seen[6:] == [1.0] * 34
    assert [row["temperature"] for row in trainer.rows] == pytest.approx([15.5] + [1.0] * 9)
    assert trainer.rows[-1]["loss"] < 0.9 * trainer.rows[0]["loss"]


def test_a_killed_dymn_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    data = tones(tmp_path, 2)
    undisturbed, killed, resumed = (dynamic_task(data, DyMNConfig(0.1)) for _ in range(3))
    Trainer(undisturbed, tmp_path / "a", annealed(60)).run(stop_at=8)
    Trainer(killed, tmp_path / "b", annealed(60)).run(stop_at=4)
    again = Trainer(resumed, tmp_path / "b", annealed(60))
    assert again.step == 4
    assert isinstance(resumed.model, DyMN)
    assert resumed.model.temperature == pytest.approx(30 - 29 * 4 / 9)
    again.run(stop_at=8)
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_student_is_saved_at_its_present_temperature(tmp_path: Path) -> None:
    task = dynamic_task(tones(tmp_path, 1), DyMNConfig(0.1, temperature=30.0))
    task.embedder.backbone.temperature = 1.0
    save_student(tmp_path / "dymn.safetensors", task.embedder)
    loaded = AudioEmbedder.load(str(tmp_path / "dymn.safetensors"), device="cpu", runtime="eager")
    assert loaded.backbone.temperature == 1.0
    assert loaded.spec.network == DyMNConfig(0.1)


@pytest.mark.parametrize(
    ("width", "rate"),
    [(0.1, 2e-3), (0.4, 2e-3), (0.5, 1e-3), (1.0, 1e-3), (2.0, 5e-4), (3.0, 5e-4)],
)
def test_a_dymn_has_the_papers_peak_rate(width: float, rate: float) -> None:
    assert peak_rate(DyMNConfig(width), 7.0) == rate


def test_only_dynamic_convolution_is_annealed() -> None:
    assert annealing(DyMNConfig()) is not None
    assert annealing(DyMNConfig(dynamic_conv=False)) is None
    assert annealing(MNConfig()) is None
    assert peak_rate(MNConfig(), 7.0) == 7.0


def test_finetuning_learns_tones_and_its_checkpoint_serves_them(tmp_path: Path) -> None:
    data = tones(tmp_path)
    train, test = data.split(["b"])
    torch.manual_seed(0)
    base = AudioEmbedder.build("mn01_as")
    settings = FinetuneConfig(epochs=12, batch=6, seconds=0.5, peak=3e-3)
    task = Finetune(base, train, test, settings)
    count = len(train.examples)
    loop = TrainConfig(settings.schedule(count), evaluate_every=4, checkpoint_every=100)
    trainer = Trainer(task, tmp_path / "run", loop)
    trainer.run()
    assert trainer.rows[-1]["loss"] < trainer.rows[0]["loss"]
    task.save(tmp_path / "tones.safetensors")
    served = AudioEmbedder.load(str(tmp_path / "tones.safetensors"), device="cpu")
    assert served.labels == ("high", "low")
    wave = torch.from_numpy(test.waves(RATE)[0])
    assert torch.allclose(served.tags(wave), task.embedder.tags(wave), atol=1e-6)


def test_unknown_labels_teach_nothing() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    label_loss(logits, torch.tensor([[1.0, 0.0, float("nan")]]), multi_label=True).backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0
    assert (logits.grad[0, :2] != 0).all()


def test_mixup_is_the_same_for_all_that_belongs_to_an_example() -> None:
    mixup = Mixup.draw(5, AugmentConfig().mel_mixup, np.random.default_rng(0))
    x = torch.randn(5, 2, 3)
    assert torch.allclose(mixup(x)[:, 0, 0], mixup(x[:, 0, 0]))
    assert (mixup.share >= 0.5).all()


def test_clips_with_rare_labels_are_drawn_more_often() -> None:
    targets = np.zeros((1000, 2), np.float32)
    targets[:990, 0] = 1
    targets[990:, 1] = 1
    chances = importance(targets)
    assert chances.sum() == pytest.approx(1)
    assert chances[-1] / chances[0] == pytest.approx(1090 / 110)


def test_top_labels_are_the_teachers_most_likely() -> None:
    truth = top_labels(np.array([[0.1, 3.0, -1.0, 2.0]], np.float32), 2)
    assert truth.tolist() == [[0, 1, 0, 1]]


def test_settled_norms_change_no_output() -> None:
    torch.manual_seed(1)
    network = MN(TINY).eval()
    mel = torch.randn(4, 128, 64) * 2 + 1
    before = network(mel)
    settle(network, [mel])
    after = network(mel)
    assert torch.allclose(after, before, atol=1e-5)
    network.classifier[4].p = 0.0
    assert torch.allclose(network.train()(mel), before, atol=1e-3)
