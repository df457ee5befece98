"""The three ways ("roads") on which mutated files enter our code.

A file is decoded by the library, loaded as a checkpoint, or posted to a server. Each road is a
Maker of eval.bench.crashes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import resource
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from eval.bench.crashes import Case, Ending
from eval.bench.mutation import GENERAL, HEADER, mutated
from eval.bench.wire import Reply, exchange, request

Value = TypeVar("Value")

RATE: Final = 32_000
DECODER_MEMORY: Final = 1536 << 20  # bytes of address space, as a server's decoders have
LOADER_MEMORY: Final = 8 << 30  # bytes of address space
# How cases end: as they should, or not.
FINE: Final = ("done", "typed error", "refused", "busy")
BAD: Final = ("UNTYPED", "CRASH", "TIMEOUT", "5XX", "NO ANSWER")


@dataclass(frozen=True, slots=True)
class FuzzInputs:
    """What a road needs: the files to mutate, and the server's port if it needs a server."""

    seeds: Sequence[Path]
    port: int = 0


def library(inputs: FuzzInputs) -> Case:
    """Make cases that decode a file with the limits and the memory of a server's decoder."""
    from embedder.audio.decode import HTTP_LIMITS, SHORT_BLOCK_SECONDS, load_audio, stream_audio

    _confine(DECODER_MEMORY)
    seeds = [path.read_bytes() for path in inputs.seeds]

    def decode(number: int) -> None:
        data = audio(seeds, number)
        if number % 2:
            load_audio(data, RATE, HTTP_LIMITS)
        else:
            for _ in stream_audio(data, RATE, HTTP_LIMITS, SHORT_BLOCK_SECONDS):
                pass

    return _case(decode)


def checkpoints(inputs: FuzzInputs) -> Case:
    """Make cases that load a file as a model and, if that succeeds, tag a clip with it."""
    import torch

    from embedder.model import AudioEmbedder

    _confine(LOADER_MEMORY)
    torch.set_num_threads(1)
    folder = tempfile.TemporaryDirectory()
    for seed in inputs.seeds:  # a probe loads its model from its own folder
        shutil.copy(seed, folder.name)
    wave = torch.zeros(1, RATE // 10)

    def load(number: int, keep: tempfile.TemporaryDirectory[str] = folder) -> None:
        suffix, data = checkpoint(inputs.seeds, number)
        path = Path(keep.name, f"mutated{suffix}")
        path.write_bytes(data)
        if suffix == ".pt":
            model = AudioEmbedder.load(PT_MODEL, path, device="cpu", runtime="eager")
        else:
            model = AudioEmbedder.load(str(path), device="cpu", runtime="eager")
        model.tags(wave)

    return _case(load)


def http(inputs: FuzzInputs) -> Case:
    """Make cases that post to a server: a random query, random headers, a damaged body or not."""
    seeds = [path.read_bytes() for path in inputs.seeds]

    def post(number: int) -> Ending:
        data = random_request(inputs.port, seeds, number)
        reply = asyncio.run(exchange(inputs.port, [data], 60))
        path = data[: data.index(b"?")].decode()
        return Ending(number, _outcome(reply), f"{path}: {reply.name}")

    return post


def audio(seeds: Sequence[bytes], number: int) -> bytes:
    """Return the bytes of a case of `library`."""
    return mutated(seeds, number)


def checkpoint(seeds: Sequence[Path], number: int) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a case of `checkpoints`."""
    path = seeds[number % len(seeds)]
    structured = path.suffix == ".safetensors" and number % 8 < 6
    kinds = HEADER if structured else GENERAL
    return path.suffix, mutated([path.read_bytes()], number, kinds)


def random_request(port: int, seeds: Sequence[bytes], number: int) -> bytes:
    """Return the whole request of a case of `http`."""
    draw = random.Random(f"request {number}")
    sound = audio(seeds, number) if draw.random() < 0.5 else draw.choice(seeds)
    path = draw.choice(list(PATHS))
    headers = _some(draw, HEADERS, 0.05)
    if path.startswith("/v1"):
        body, kind = _json(draw, sound), "application/json"
    elif draw.random() < 0.5:
        body, kind = _multipart(draw, sound), draw.choice(MULTIPART_TYPES)
    else:
        body, kind = sound, "application/octet-stream"
    query = "&".join(f"{name}={value}" for name, value in _some(draw, PATHS[path], 0.25).items())
    return request(port, f"{path}?{query}", body, {"Content-Type": kind, **headers})


PT_MODEL: Final = "mn01_as"
_MODEL: Final = ("sprout04", "sprout04", "mn04_as", "x", "", "%2e%2e%2f", "%ff%fe")
_WINDOW: Final = ("160", "1000", "1000", "50", "1e3", "60000", "0", "-1", "1", "nan", "1e308", "x")
_HOP: Final = ("50", "1000", "1000", "1e3", "60000", "0", "-1", "1", "inf", "1e308", "")
_TAPS: Final = ("mel", "mel,b5", "b5,b13", "b5,b5", ",", "tags", "x", "", "%00", "mel," * 50)
_KIND: Final = ("scene", "timestamps", "timestamps", "x")
_AUDIO: Final = {"model": _MODEL, "window_ms": _WINDOW, "hop_ms": _HOP}
PATHS: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {  # path -> values of its parameters
    "/embed": {**_AUDIO, "kind": _KIND, "taps": _TAPS},
    "/timestamps": {**_AUDIO, "taps": _TAPS, "unknown": ("1", "%00")},
    "/tags": {**_AUDIO, "kind": _KIND, "top_k": ("1", "527", "10000", "0", "1e9", "x")},
    "/events": {
        "model": _MODEL,
        "threshold": ("0.01", "1", "0", "nan"),
        "median": ("1", "9", "999", "2", "x"),
        "merge_gap_ms": ("0", "1e308", "-1"),
    },
    "/v1/embeddings": {"model": _MODEL},
}
HEADERS: Final[Mapping[str, Sequence[str]]] = {
    "Accept": ("*/*", "application/x-npy", "application/x-npz", "x", "text/html;q=0", ""),
    "Content-Encoding": ("gzip", "identity", "x"),
    "Authorization": ("Bearer ", "Bearer x", "x", "Basic \xff"),
    "Expect": ("100-continue", "x"),
    "X-Odd": ("\xff\xfe", "a" * 4000, ""),
    "Range": ("bytes=0-1",),
}
FIELDS: Final[Mapping[str, Sequence[str | int]]] = {
    "encoding_format": ("float", "base64", "x"),
    "dimensions": (1, -1, 10**30, "x"),
    "model": ("sprout04", "x", "", "\x00"),
}
_BOUNDARY: Final = "audio-boundary"
MULTIPART_TYPES: Final = (
    *(f"multipart/form-data; boundary={_BOUNDARY}",) * 6,
    f"multipart/form-data; boundary={_BOUNDARY}; charset=undefined",
    f"multipart/form-data; boundary={_BOUNDARY}; charset=utf-16",
    *("multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x"),
)
_PART_HEADS: Final = (
    *('form-data; name="file"; filename="a.wav"',) * 6,
    *('form-data; name="file"', 'form-data; name="other"', "form-data", "x", ""),
    "form-data; name=\"file\"; filename*=utf-8''%ff",
    'form-data; name="file"; filename="../../../etc/passwd"',
)


def _multipart(draw: random.Random, sound: bytes) -> bytes:
    part = (
        f"--{_BOUNDARY}\r\nContent-Disposition: {draw.choice(_PART_HEADS)}\r\n"
        f"Content-Type: {draw.choice(('audio/wav', 'x', ''))}\r\n\r\n"
    ).encode()
    parts = b"".join(part + sound + b"\r\n" for _ in range(draw.choice((1, 1, 1, 2, 3))))
    whole = parts + f"--{_BOUNDARY}--\r\n".encode()
    return mutated([whole], draw.getrandbits(32)) if draw.random() < 0.2 else whole


def _json(draw: random.Random, sound: bytes) -> bytes:
    text = base64.b64encode(sound).decode()
    inputs = draw.choice((text, [text], [text, text], ["x"], f"data:audio/wav;base64,{text}", 1))
    whole = json.dumps({"input": inputs, **_some(draw, FIELDS, 0.2)}).encode()
    return mutated([whole], draw.getrandbits(32)) if draw.random() < 0.2 else whole


def _some(
    draw: random.Random, table: Mapping[str, Sequence[Value]], share: float
) -> dict[str, Value]:
    """Draw some of a table's names, each with this probability, and a value for each."""
    return {name: draw.choice(values) for name, values in table.items() if draw.random() < share}


def _case(work: Callable[[int], None]) -> Case:
    """Make a case of a function: a typed error is a good ending, any other one a bad one."""
    from embedder.errors import EmbedderError

    logging.disable()  # damaged files are expected here

    def case(number: int) -> Ending:
        try:
            work(number)
        except EmbedderError as error:
            return Ending(number, "typed error", type(error).__name__)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(str(error).split())[:160].replace("|", "/")  # for a table's cell
            reason = f"{type(error).__name__}: {message} ({frame.name})"
            return Ending(number, "UNTYPED", reason)
        return Ending(number, "done")

    return case


def _outcome(reply: Reply) -> str:
    if reply.end == "late":
        return "TIMEOUT"
    if reply.status == 0 or reply.end != "whole":
        return "NO ANSWER"
    if reply.status in (429, 503):
        return "busy"
    if reply.status >= 500:
        return "5XX"
    return "done" if reply.status < 400 else "refused"


def _confine(memory: int) -> None:
    """Limit the address space of this process to so many bytes; write no core dumps."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
