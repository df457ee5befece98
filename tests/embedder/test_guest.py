"""In a program of somebody else, the library changes nothing but what it is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.shared import ROOT

# Loads a model and runs it; tells what was hidden from others, and calls for the C library.
GUEST = """
import sys, types

import embedder.process

calls = []
embedder.process.ctypes = types.SimpleNamespace(CDLL=calls.append)
import torch

hidden = {name for name, module in sys.modules.items() if module is None}
model = embedder.AudioEmbedder.load("sprout04", device="cpu", runtime=sys.argv[1])
model.scene(torch.zeros(1, 32_000))
print({name for name, module in sys.modules.items() if module is None} - hidden, calls)
"""


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_loaded_model_leaves_modules_and_the_allocator_alone(runtime: str) -> None:
    if runtime == "openvino" and find_spec("openvino") is None:
        pytest.skip("no wheels of OpenVINO for this machine")
    done = subprocess.run(
        [sys.executable, "-c", GUEST, runtime],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "set() []\n"
