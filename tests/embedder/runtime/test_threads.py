"""Threads share engines, convert in turn and compute side by side."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from embedder.runtime import conversion, create, lazy, openvino_engine
from embedder.runtime.base import Engine, EngineInput
from tests.engine_kit import NETWORKS, model_of, run_with
from tests.tensors import distance, waves


def test_threads_share_an_engine() -> None:
    model = run_with(model_of(NETWORKS["mn"]), "openvino")
    clips = [waves(1, 8_000 + index) for index in range(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model.scene, clips))
    for ours, wave in zip(together, clips, strict=True):
        assert distance(ours, model.scene(wave)) < 1e-6


def test_threads_that_come_first_share_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def slow(choice: str, network: EngineInput) -> Engine:
        made.append(choice)
        time.sleep(0.05)
        return create(choice, network)

    monkeypatch.setattr(lazy, "create", slow)
    model = run_with(model_of(NETWORKS["mn"]), "torch")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(model.scene, [waves(1, 8_000)] * 4))
    assert made == ["torch"]


def test_networks_are_converted_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    most = under_way = 0

    def counted(network: EngineInput, graph: conversion.GraphShape) -> object:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.05)
        model = converted(network, graph)
        under_way -= 1
        return model

    converted = conversion._converted
    monkeypatch.setattr(conversion, "_converted", counted)
    models = [run_with(model_of(NETWORKS["mn"]), "openvino") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda model: model.scene(waves(1, 8_000)), models)
    assert all(torch.equal(first, other) for other in others)
    assert most == 1


@pytest.mark.parametrize(
    ("copies", "expected"),
    [(4, [("1", "2"), ("1", "2"), ("1", "4")]), (1, [("2", "4"), ("1", "4")])],
)
def test_clips_run_side_by_side(
    copies: int,
    expected: list[tuple[str, str]],
    compiled: list[tuple[dict[str, str], Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_engine, "MAX_COPIES", copies)
    monkeypatch.setattr(openvino_engine, "threads", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    model = run_with(model_of(NETWORKS["mn"]), "openvino")
    wave = waves(3, 10 * model.sample_rate)
    together = model.scene(wave)
    alone = torch.cat([model.scene(clip[None]) for clip in wave])
    assert distance(together, alone) < 1e-6
    asked = [(options["NUM_STREAMS"], options["INFERENCE_NUM_THREADS"]) for options, _ in compiled]
    assert asked == expected


def test_first_runs_of_several_threads_do_not_block_each_other() -> None:
    """Without the look-up in the engine's module, five of six such processes never end."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_RUNS], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "done\n", done.stderr


def test_threads_side_by_side_have_one_thread_of_torch_each() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with openvino_engine.single_threaded(2) as pool:

            def after_work(size: int) -> int:
                torch.fft.rfft(torch.zeros(size, 1024))  # large enough to be shared out
                return torch.get_num_threads()

            assert list(pool.map(after_work, [1000] * 4)) == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


FIRST_RUNS = """
import sys, threading
import embedder.runtime.openvino_engine as engine
sys.setswitchinterval(1e-6)
start = threading.Barrier(16)

def run():
    start.wait()
    engine.openvino.Type.f32.to_dtype()

threads = [threading.Thread(target=run) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""
