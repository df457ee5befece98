"""Print which of our files and functions answer one POST /embed: python docs/trace_request.py

They come in the order of their first call, those of the server before those of a decoder, whose job
runs here in this process. The server has started and warmed up before the request is sent.
"""

from __future__ import annotations

import io
import socket
import sys
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx
import numpy as np
import uvicorn

from embedder.audio.decode import HTTP_LIMITS
from service.app import create_app
from service.decode_worker import decode
from service.protocol import BoundedHttp
from service.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("embedder", "service")
RATE: Final = 32_000

Calls = dict[str, list[str]]  # file -> functions, both in the order of their first call


class Trace:
    """Notes each function of ours that is called, in the threads that it is given to."""

    def __init__(self) -> None:
        self.calls: Calls = {}
        self.noting = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """What `sys.setprofile` calls."""
        code = frame.f_code
        if not self.noting or event != "call" or code.co_name.startswith("<"):
            return
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            functions = self.calls.setdefault(path.relative_to(ROOT).as_posix(), [])
            if code.co_qualname not in functions:
                functions.append(code.co_qualname)

    def during(self, work: Callable[[], object]) -> None:
        """Note what is called until `work` returns."""
        self.noting = True
        try:
            work()
        finally:
            self.noting = False


def wav() -> bytes:
    """Twelve seconds of noise: two windows of a scene."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, RATE, 0, "NONE", ""))
        sound.writeframes(np.random.default_rng(0).integers(-9, 9, 12 * RATE, "<i2").tobytes())
    return file.getvalue()


def ask_server(audio: bytes, trace: Trace) -> None:
    """One request to a server that runs in a thread of this process."""
    app = create_app(Settings(decode_workers=1))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, http=BoundedHttp, log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        port = listening.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while not server.started or client.get("/readyz").status_code != httpx.codes.OK:
                time.sleep(0.1)
            trace.during(lambda: client.post("/embed", content=audio).raise_for_status())
        server.should_exit = True
        thread.join()


def main() -> None:
    """Print the files, with their functions, and how many there are."""
    trace, audio = Trace(), wav()
    threading.setprofile(trace)  # of all threads that start from now on
    ask_server(audio, trace)
    threading.setprofile(None)
    sys.setprofile(trace)
    trace.during(lambda: decode(audio, RATE, HTTP_LIMITS, np.empty(20 * RATE, np.float32)))
    sys.setprofile(None)
    for file, functions in trace.calls.items():
        print(f"{file}: {', '.join(functions)}")
    print(f"{len(trace.calls)} files, {sum(map(len, trace.calls.values()))} functions")


if __name__ == "__main__":
    main()
