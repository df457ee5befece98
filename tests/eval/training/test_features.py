"""A student comes closer to its teacher, feature by feature."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from embedder.networks.mn import MN
from embedder.zoo import MNConfig
from eval.data import corpus
from eval.data.mixing import MixConfig, Mixer
from eval.training.features import FeatureConfig, FeatureDistillation
from eval.training.heldout import HeldOut, crops
from eval.training.norms import settle
from eval.training.soap import soap
from eval.training.trainer import Trainer
from tests.tones import config

TINY = MNConfig(width=0.1)


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


def test_settled_norms_change_no_output() -> None:
    torch.manual_seed(1)
    network = MN(TINY).eval()
    mel = torch.randn(4, 128, 64) * 2 + 1
    before = network(mel)
    settle(network, [mel])
    after = network(mel)
    assert torch.allclose(after, before, atol=1e-5)
    dropout = network.get_submodule("classifier.4")
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.0
    assert torch.allclose(network.train()(mel), before, atol=1e-3)
