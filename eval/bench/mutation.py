"""Mutations of files: a number always makes the same bytes, on every machine."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

_HEADER_BYTES: Final = 512  # most numbers that describe a file stand in its first bytes
_LARGEST: Final = 4 << 20  # longer seeds are cut: mutating must not take longer than decoding
# Numbers that parsers often fail on: 0, 1, the largest of each width, sign bits, powers of two.
_NUMBERS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000)
_LENGTH: Final = struct.Struct("<Q")  # safetensors begin with the length of their JSON header

Seeds = Sequence[bytes]


def mutated(seeds: Seeds, number: int, kinds: Sequence[str] = ()) -> bytes:
    """Return mutation `number` of some seeds.

    One to three mutations of these kinds are applied to one of the seeds; default: all of GENERAL.
    """
    draw = random.Random(number)
    data = bytearray(draw.choice(seeds)[:_LARGEST])
    for kind in draw.choices(kinds or GENERAL, k=draw.choice((1, 1, 1, 2, 3))):
        data = MUTATIONS[kind](draw, data, seeds)
    return bytes(data)


def _flip(draw: random.Random, data: bytearray, _seeds: Seeds) -> bytearray:
    for _ in range(draw.choice((1, 2, 8, 64, 512))):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def _truncate(draw: random.Random, data: bytearray, _: Seeds) -> bytearray:
    return data[: draw.randrange(len(data) + 1)]


def _duplicate(draw: random.Random, data: bytearray, _: Seeds) -> bytearray:
    first, last = _range(draw, data)
    return data[:last] + data[first:last] * draw.choice((1, 2, 7)) + data[last:]


def _remove(draw: random.Random, data: bytearray, _: Seeds) -> bytearray:
    first, last = _range(draw, data)
    return data[:first] + data[last:]


def _lie(draw: random.Random, data: bytearray, _seeds: Seeds) -> bytearray:
    """Change some numbers in the header, of one to eight bytes, in either byte order."""
    for _ in range(draw.randint(1, 4)):
        width = draw.choice((1, 2, 4, 8))
        number = draw.choice(_NUMBERS) & ((1 << 8 * width) - 1)
        number = number if draw.random() < 0.8 else draw.getrandbits(8 * width)
        first = draw.randrange(min(_HEADER_BYTES, max(1, len(data) - width)))
        data[first : first + width] = number.to_bytes(width, draw.choice(("little", "big")))
    return data


def _splice(draw: random.Random, data: bytearray, seeds: Seeds) -> bytearray:
    """Join the beginning of this file and the end of another."""
    other = draw.choice(seeds)[:_LARGEST]
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def _noise(draw: random.Random, data: bytearray, _: Seeds) -> bytearray:
    """Put random bytes in place of a piece, or of all but the first few bytes."""
    first, last = _range(draw, data)
    if draw.random() < 0.2:
        first, last = min(draw.randrange(64), len(data)), len(data)
    data[first:last] = draw.randbytes(min(last - first, 1 << 16))
    return data


def _json_header(draw: random.Random, data: bytearray, _: Seeds) -> bytearray:
    """Change, remove or rename a value in the JSON header of a safetensors file."""
    if len(data) < _LENGTH.size:
        return data
    (length,) = _LENGTH.unpack(data[: _LENGTH.size])
    try:
        header = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    except ValueError:  # an earlier mutation has damaged the header
        return data
    new = json.dumps(_altered(draw, header)).encode()
    return bytearray(_LENGTH.pack(len(new)) + new) + data[_LENGTH.size + length :]


_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, 0, -1, 1, 3, 0.5, 1e308, 2**31, 2**63, 10**30, "", "x", "F32", [], {}),
    *([0], [-1], [2**40, 2**40], ["x"], {"x": 1}, float("nan"), [[]]),
)


def _altered(draw: random.Random, value: Any) -> Any:
    """Return JSON with one value replaced, removed or doubled, also in JSON inside a string."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.dumps(_altered(draw, json.loads(value)))
        except ValueError:
            return draw.choice(_VALUES)
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = "__metadata__" if "__metadata__" in value and draw.random() < 0.7 else ""
        return _altered_member(draw, value, key or draw.choice(list(value)))
    if isinstance(value, list) and value and draw.random() < 0.8:
        index = draw.randrange(len(value))
        return [*value[:index], _altered(draw, value[index]), *value[index + 1 :]]
    return draw.choice(_VALUES)


def _altered_member(draw: random.Random, value: dict[str, Any], key: str) -> dict[str, Any]:
    rest = {name: member for name, member in value.items() if name != key}
    match draw.randrange(8):
        case 0:
            return rest
        case 1:
            return {**rest, draw.choice(("x", "", "embedder", "probe", "a.b.c")): value[key]}
        case _:
            return {**value, key: _altered(draw, value[key])}


def _range(draw: random.Random, data: bytearray) -> tuple[int, int]:
    """Draw first and last index of a piece of at most 4 KiB."""
    first = draw.randrange(len(data) + 1)
    return first, min(len(data), first + draw.randrange(1, 1 << draw.randint(1, 12)))


Mutation = Callable[[random.Random, bytearray, Seeds], bytearray]

MUTATIONS: Final[dict[str, Mutation]] = {
    "flip": _flip,
    "truncate": _truncate,
    "duplicate": _duplicate,
    "remove": _remove,
    "lie": _lie,
    "splice": _splice,
    "noise": _noise,
    "json": _json_header,
}
HEADER: Final = ("json",)
GENERAL: Final = tuple(kind for kind in MUTATIONS if kind not in HEADER)
