"""OpenVINO, imported so that it sends no usage statistics and its first runs cannot block."""

from __future__ import annotations

import sys

# A module that is None here counts as not installed. This one would send reports to Intel and write
# into the user's home folder.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino import opset13  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402

# OpenVINO looks NumPy's types up when it first needs one. Threads that need one at the same time
# then wait for each other for ever (a fault of pybind11, which OpenVINO is built with). An import
# runs in one thread alone, so the types are looked up here.
openvino.Type.f32.to_dtype()

__all__ = ["FrontEndManager", "TorchScriptPythonDecoder", "openvino", "opset13"]
