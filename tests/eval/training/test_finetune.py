"""Fine-tuning learns labels, and its checkpoints serve them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from embedder.model import AudioEmbedder
from eval.training.augment import AugmentConfig, Mixup
from eval.training.finetune import Finetune, FinetuneConfig, label_loss
from eval.training.trainer import TrainConfig, Trainer
from tests.tones import RATE, tones


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
    loss = label_loss(logits, torch.tensor([[1.0, 0.0, float("nan")]]), multi_label=True)
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0
    assert (logits.grad[0, :2] != 0).all()


def test_mixup_is_the_same_for_all_that_belongs_to_an_example() -> None:
    mixup = Mixup.draw(5, AugmentConfig().mel_mixup, np.random.default_rng(0))
    x = torch.randn(5, 2, 3)
    assert torch.allclose(mixup(x)[:, 0, 0], mixup(x[:, 0, 0]))
    assert (mixup.share >= 0.5).all()
