"""OpenVINO, imported so that no usage statistics leave and its first runs cannot block."""

from __future__ import annotations

import sys

# What is None here counts as not installed. It would report to Intel, and write into the home.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino import opset13  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402

# NumPy's types are looked up at the first need of one. Threads that need one at the same time wait
# for each other for ever (pybind11's fault, within OpenVINO); this module is imported by one alone.
openvino.Type.f32.to_dtype()

__all__ = ["FrontEndManager", "TorchScriptPythonDecoder", "openvino", "opset13"]
