"""OpenVINO, imported so that it sends no usage statistics and its first runs cannot block."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_TELEMETRY: Final = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide the package that reports to Intel and writes into the home, as OpenVINO is imported.

    OpenVINO looks for it once and then does without. Others who import it later still can.
    """
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # counts as not installed
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


with _without_telemetry():
    import openvino
    from openvino import opset13
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

# OpenVINO looks NumPy's types up when it first needs one. Threads that need one at the same time
# then wait for each other for ever (a fault of pybind11, which OpenVINO is built with). An import
# runs in one thread alone, so the types are looked up here.
openvino.Type.f32.to_dtype()

__all__ = ["FrontEndManager", "TorchScriptPythonDecoder", "openvino", "opset13"]
