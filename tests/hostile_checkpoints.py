"""Checkpoints that somebody damaged, or made to do damage: the same ones for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from embedder.checkpoints import METADATA_KEY

# Values that a description may hold where another one belongs.
ODD: Final[tuple[object, ...]] = (
    *(None, True, 0, -1, 10**9, 10**400, 0.5, float("nan"), float("inf"), -1e300),
    *("", "9", "\x00", "\ud800", "x" * 5_000, [], [1], ["b5"] * 2_000, [[]], {}, {"a": {}}),
)


def damaged(original: bytes, rng: random.Random) -> bytes:
    """A file with a few bytes changed, most of them where its structure is, or cut short."""
    content = bytearray(original)
    ends = min(len(content), 20_000)
    for _ in range(rng.choice((1, 2, 8, 64))):
        at = rng.choice((rng.randrange(ends), rng.randrange(len(content)), -rng.randrange(1, ends)))
        content[at] = rng.choice((rng.randrange(256), content[at] ^ 1 << rng.randrange(8)))
    if rng.random() < 0.2:
        del content[rng.randrange(len(content)) :]
    if rng.random() < 0.1:
        start = rng.randrange(ends)
        content[start:start] = content[: rng.randrange(ends)]
    return bytes(content)


def misdescribed(original: bytes, rng: random.Random, key: str = METADATA_KEY) -> bytes:
    """A safetensors file whose description says something odd."""
    size = int.from_bytes(original[:8], "little")
    header = json.loads(original[8 : 8 + size])
    description = json.loads(header["__metadata__"][key])
    for _ in range(rng.choice((1, 1, 2))):
        change(description, rng)
    header["__metadata__"][key] = json.dumps(description)
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + original[8 + size :]


def change(description: dict[str, Any], rng: random.Random) -> None:
    """Replace, remove or add one value, at any depth."""
    inside = description
    while True:
        name = rng.choice([*inside, "unheard_of"])
        if not isinstance(inside.get(name), dict) or rng.random() < 0.1:
            break
        inside = inside[name]
    if rng.random() < 0.1:
        inside.pop(name, None)
    else:
        inside[name] = rng.choice(ODD)


def hostile(originals: list[Path], folder: Path, count: int, key: str) -> Iterator[Path]:
    """So many files, made of the originals in turn; each lies there until the next one comes."""
    rng = random.Random(0)
    for number in range(count):
        original = originals[number % len(originals)]
        kinds: list[Callable[[bytes], bytes]] = [lambda content: damaged(content, rng)]
        if original.suffix == ".safetensors":
            kinds.append(lambda content: misdescribed(content, rng, key))
        path = folder / f"{number}{original.suffix}"
        path.write_bytes(rng.choice(kinds)(original.read_bytes()))
        yield path
        path.unlink()
