"""A model that was used before a fork is of use in the child, too; nothing waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_all_start_methods
from pathlib import Path

import pytest

from tests.hear_kit import tiny_checkpoint
from tests.shared import ROOT

LIMIT = 120  # seconds, of which a good run takes a tenth

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

# A child that ends as a script does, and one that ends at once.
FORK = """
import gc, os, sys
import torch
from embedder import AudioEmbedder

path, runtime = sys.argv[1:]
model = AudioEmbedder.load(path, device="cpu", runtime=runtime)
torch.set_num_threads(2)
clips = torch.rand(4, 96_000) - 0.5
before = model.scene(clips)
child = os.fork()
if not child:
    again = model.scene(clips)
    assert torch.allclose(again, before, atol=1e-5), (again - before).abs().max()
    other = AudioEmbedder.load(path, device="cpu", runtime=runtime)
    assert torch.allclose(other.tags(clips), model.tags(clips), atol=1e-5)
    del model, other
    gc.collect()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert torch.equal(model.scene(clips), before)
"""
LOADER = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset
from embedder import AudioEmbedder

class Vectors(Dataset):
    def __init__(self, path, runtime):
        self.model = AudioEmbedder.load(path, device="cpu", runtime=runtime)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.model.scene(torch.full((32_000,), index / 4))[0]

if __name__ == "__main__":
    path, runtime, start = sys.argv[1:]
    torch.set_num_threads(2)
    vectors = Vectors(path, runtime)
    alone = torch.stack([vectors[index] for index in range(len(vectors))])
    loader = DataLoader(vectors, 2, num_workers=2, multiprocessing_context=start)
    for _ in range(2):
        assert torch.allclose(torch.cat(list(loader)), alone, atol=1e-5)
"""
LOCKS = """
import importlib, os, pkgutil, threading
from embedder import runtime
from embedder.runtime.forks import ProcessLock

names = [module.name for module in pkgutil.iter_modules(runtime.__path__, "embedder.runtime.")]
values = [value for name in names for value in vars(importlib.import_module(name)).values()]
assert not [value for value in values if isinstance(value, type(threading.Lock()))]
held = list({value for value in values if isinstance(value, ProcessLock)})
assert len(held) >= 3
entered, leave = threading.Event(), threading.Event()

def hold():
    for lock in held:
        lock.__enter__()
    entered.set()
    leave.wait()

threading.Thread(target=hold).start()
entered.wait()
child = os.fork()
if not child:
    for lock in held:
        with lock:
            pass
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
leave.set()
"""


def run(script: str, folder: Path, *arguments: str) -> None:
    """In a process that is killed with its children where it does not end."""
    path = folder / "script.py"
    path.write_text(script, "utf-8")
    command = [sys.executable, str(path), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, stderr = process.communicate(timeout=LIMIT)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
    assert process.returncode == 0, stderr


@needs_fork
@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_a_forked_child_computes(runtime: str, tmp_path: Path) -> None:
    run(FORK, tmp_path, str(tiny_checkpoint("mn01_as", tmp_path)), runtime)


@pytest.mark.parametrize("start", sorted({"fork", "spawn"} & {*get_all_start_methods()}))
def test_workers_of_a_data_loader_compute(start: str, tmp_path: Path) -> None:
    run(LOADER, tmp_path, str(tiny_checkpoint("mn01_as", tmp_path)), "openvino", start)


@needs_fork
def test_locks_are_free_in_a_forked_child(tmp_path: Path) -> None:
    run(LOCKS, tmp_path)
