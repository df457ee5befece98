"""Small networks for every engine, and changes to their weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from embedder import AudioEmbedder
from embedder.zoo import DyMNConfig, FrameMNConfig, ModelSpec, lookup

TINY = "mn01_as"
NETWORKS = {
    "mn": lookup(TINY),
    "dymn": replace(lookup("dymn04_as"), network=DyMNConfig(0.1)),
    "fmn": replace(lookup("fmn04_strong"), network=FrameMNConfig(0.1)),
    "fmn+gru": replace(lookup("fmn04_strong"), network=FrameMNConfig(0.1, "gru", 32)),
}


@torch.no_grad()
def model_of(spec: ModelSpec) -> AudioEmbedder:
    """Random weights, with BatchNorms that do something."""
    torch.manual_seed(0)
    model = AudioEmbedder("tiny", spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    return model


def run_with(model: AudioEmbedder, choice: str) -> AudioEmbedder:
    """A copy that runs on another engine."""
    other = copy.deepcopy(model)
    other.use(choice)
    return other


@torch.no_grad()
def move_statistics(backbone: Any) -> None:
    backbone.features[0][1].running_mean.add_(1)


def write_through_data(backbone: Any) -> None:
    backbone.features[0][0].weight.data.mul_(-1)


def replace_module(backbone: Any) -> None:
    last = backbone.classifier[-1]
    backbone.classifier[-1] = nn.Linear(last.in_features, last.out_features)


def assign_weights(backbone: Any) -> None:
    state = {
        name: tensor * 0.9 if tensor.is_floating_point() else tensor
        for name, tensor in backbone.state_dict().items()
    }
    backbone.load_state_dict(state, assign=True)


def add_hook(backbone: Any) -> None:
    backbone.features[0].register_forward_hook(lambda *call: call[-1] - 1)
