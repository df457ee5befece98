"""FLAC files of one constant value: ten minutes take four kilobytes."""

from __future__ import annotations

import struct
from typing import Final

LARGEST_BLOCK: Final = 65_535
_HEADER: Final = 0xFFF8
_SIXTEEN_BITS_OF_SIZE: Final = 7  # the block's size follows the header in 16 bits
_SIXTEEN_BIT_SAMPLES: Final = 4
_CRC8: Final = 0x07
_CRC16: Final = 0x8005


def constant(
    blocks: int, rate: int, value: int = 0, channels: int = 1, block: int = LARGEST_BLOCK
) -> bytes:
    """16-bit FLAC of so many blocks of `block` samples, each of which has this value."""
    subframes = (b"\0" + struct.pack(">h", value)) * channels
    frames = (_frame(number, block, channels, subframes) for number in range(blocks))
    return b"".join([b"fLaC", _stream_info(blocks * block, rate, channels, block), *frames])


def seconds(length: float, rate: int, value: int = 0) -> bytes:
    """About so many seconds in the largest blocks."""
    return constant(round(length * rate / LARGEST_BLOCK), rate, value)


def _stream_info(samples: int, rate: int, channels: int, block: int) -> bytes:
    facts = rate << 44 | (channels - 1) << 41 | 15 << 36 | samples
    body = struct.pack(">HH", block, block) + bytes(6) + facts.to_bytes(8, "big") + bytes(16)
    return b"\x80" + len(body).to_bytes(3, "big") + body


def _frame(number: int, block: int, channels: int, subframes: bytes) -> bytes:
    kind = (channels - 1) << 4 | _SIXTEEN_BIT_SAMPLES << 1
    head = struct.pack(">HBB", _HEADER, _SIXTEEN_BITS_OF_SIZE << 4, kind)
    head += _utf8(number) + struct.pack(">H", block - 1)
    frame = head + bytes([_crc(head, _CRC8, 8)]) + subframes
    return frame + struct.pack(">H", _crc(frame, _CRC16, 16))


def _utf8(number: int) -> bytes:
    """UTF-8 as FLAC extends it: also of surrogates, up to 31 bits."""
    if number < 0x80:
        return bytes([number])
    tail = []
    room = 6  # bits that the first byte has for the number
    while number >= 1 << room:
        tail.append(0x80 | number & 0x3F)
        number >>= 6
        room -= 1
    return bytes([(0xFF << (room + 1)) & 0xFF | number, *reversed(tail)])


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    value, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & mask
    return value
