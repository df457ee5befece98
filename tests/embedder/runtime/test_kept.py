"""Converted networks stay on disk, under what their weights are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvino
import pytest
import torch
from torch import Tensor

from embedder import AudioEmbedder, zoo
from embedder.runtime import conversion, network_cache, openvino_engine
from embedder.runtime.base import EngineInput
from embedder.zoo import MelConfig, lookup
from tests.engine_kit import (
    NETWORKS,
    TINY,
    add_hook,
    model_of,
    move_statistics,
    run_with,
    write_through_data,
)
from tests.hear_kit import tiny_checkpoint
from tests.shared import ROOT
from tests.tensors import distance, waves


class TestKeptNetworks:
    """Converted networks stay on disk, under what their weights are."""

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = tmp_path / "cache"
        monkeypatch.setattr(openvino_engine, "cache_dir", lambda: self.cache)
        self.path = str(tiny_checkpoint(TINY, tmp_path))
        self.wave = waves(1, 8_000)

    def embed(self) -> Tensor:
        return AudioEmbedder.load(self.path, device="cpu", runtime="openvino").scene(self.wave)

    def test_a_second_process_need_not_convert(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.embed()
        monkeypatch.setattr(openvino_engine, "convert", None)
        assert torch.equal(self.embed(), first)

    def test_a_damaged_file_is_made_anew(self, caplog: pytest.LogCaptureFixture) -> None:
        first = self.embed()
        (kept,) = self.cache.rglob("*.xml")
        kept.write_text("<net>")
        assert torch.equal(self.embed(), first)
        assert "is damaged" in caplog.text
        assert kept.stat().st_size > 1000

    def test_a_cache_that_cannot_be_written_is_only_said(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.cache.write_text("no folder")
        assert self.embed().shape[0] == 1
        assert "could not be kept" in caplog.text

    def test_changed_weights_are_not_those_of_the_file(self) -> None:
        model = AudioEmbedder.load(self.path, device="cpu", runtime="openvino")
        with torch.no_grad():
            next(model.backbone.parameters()).mul_(-1)
        changed = model.scene(self.wave)
        assert not self.cache.exists()
        assert distance(changed, self.embed()) > 0.001

    def test_random_weights_are_not_kept(self) -> None:
        run_with(model_of(NETWORKS["mn"]), "openvino").scene(self.wave)
        assert not self.cache.exists()

    def test_a_flipped_bit_is_noticed(self, caplog: pytest.LogCaptureFixture) -> None:
        first = self.embed()
        (weights,) = self.cache.rglob("*.bin")
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
        assert torch.equal(self.embed(), first)
        assert "is damaged" in caplog.text
        caplog.clear()
        assert torch.equal(self.embed(), first)
        assert not caplog.text

    def test_one_file_serves_two_front_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = {"wide": lookup(TINY), "narrow": replace(lookup(TINY), mel=MelConfig(n_mels=64))}
        monkeypatch.setattr(zoo, "MODELS", rows)
        weights = self.cache.parent / "plain.pt"
        torch.save(model_of(NETWORKS["mn"]).backbone.state_dict(), weights)
        for name in rows:
            fast, slow = (
                AudioEmbedder.load(name, weights, device="cpu", runtime=choice)
                for choice in ("openvino", "eager")
            )
            assert distance(fast.scene(self.wave), slow.scene(self.wave)) < 1e-5

    def test_changed_statistics_are_not_those_of_the_file(self) -> None:
        untouched = self.embed()
        for change in (move_statistics, write_through_data, add_hook):
            shutil.rmtree(self.cache)
            model = AudioEmbedder.load(self.path, device="cpu", runtime="openvino")
            change(model.backbone)
            changed = model.scene(self.wave)
            assert not self.cache.exists()
            assert distance(changed, self.embed()) > 1e-4
            assert torch.equal(self.embed(), untouched)

    def test_weights_that_change_while_graphs_are_made_are_not_kept(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = AudioEmbedder.load(self.path, device="cpu", runtime="openvino")
        convert = conversion.convert

        def disturbed(network: EngineInput, graph: conversion.GraphShape) -> Any:
            write_through_data(network.backbone)
            return convert(network, graph)

        monkeypatch.setattr(openvino_engine, "convert", disturbed)
        model.scene(self.wave)
        assert not self.cache.exists()

    def test_a_full_disk_is_only_said(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise RuntimeError("Check 'bin_file' failed: can't write")

        monkeypatch.setattr(openvino, "save_model", full)
        model = AudioEmbedder.load(self.path, device="cpu", runtime="openvino")
        model.scene(self.wave)
        model.scene(waves(1, 10 * model.sample_rate))
        run_with(model_of(NETWORKS["mn"]), "openvino").scene(waves(1, 10 * model.sample_rate))
        assert caplog.text.count("could not be kept on disk") == 3
        assert not list((self.cache / "openvino").iterdir())

    def test_no_folder_for_temporary_files_is_only_said(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(self.cache / "nowhere"))
        model = run_with(model_of(NETWORKS["mn"]), "openvino")
        assert model.scene(waves(1, 10 * model.sample_rate)).isfinite().all()
        assert "could not be kept" in caplog.text

    def test_two_processes_keep_the_same_network_once(self) -> None:
        root = ROOT
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", EMBED, self.path]
        running = [subprocess.Popen(command, env=environment, stderr=-1) for _ in range(2)]
        assert [process.communicate(timeout=120)[1] for process in running] == [b"", b""]
        (folder,) = (self.cache / "embedder" / "openvino").iterdir()
        assert sorted(file.name for file in folder.iterdir()) == [
            "network.bin",
            "network.blake3",
            "network.xml",
        ]

    def test_what_was_used_longest_ago_goes_first(self, tmp_path: Path) -> None:
        for age, name in enumerate(("new", "old.bin", "older")):
            entry = tmp_path / "networks" / name
            file = entry if entry.suffix else entry / network_cache.WEIGHTS
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(100))
            os.utime(entry, (1e9 - age, 1e9 - age))
        network_cache.prune(tmp_path / "networks", 300)
        assert len(list((tmp_path / "networks").iterdir())) == 3
        network_cache.prune(tmp_path / "networks", 250)
        assert sorted(path.name for path in (tmp_path / "networks").iterdir()) == ["new", "old.bin"]
        network_cache.prune(tmp_path / "networks", 100)
        assert [path.name for path in (tmp_path / "networks").iterdir()] == ["new"]


EMBED = """
import sys, torch, embedder
torch.set_num_threads(1)
embedder.AudioEmbedder.load(sys.argv[1], device="cpu", runtime="openvino").scene(torch.ones(8000))
"""
