"""Writes FLAC files of one constant value: ten minutes take four kilobytes."""

from __future__ import annotations

import struct
from typing import Final

LARGEST_BLOCK: Final = 65_535
_HEADER: Final = 0xFFF8
_SIXTEEN_BITS_OF_SIZE: Final = 7  # code for: the size of the block follows in 16 bits
_SIXTEEN_BIT_SAMPLES: Final = 4  # code for the sample format
_CRC8: Final = 0x07  # polynomials of the two checksums
_CRC16: Final = 0x8005


def constant(
    blocks: int, rate: int, value: int = 0, channels: int = 1, block: int = LARGEST_BLOCK
) -> bytes:
    """Return 16-bit FLAC: so many blocks of `block` samples, all of which have this value."""
    subframes = (b"\0" + struct.pack(">h", value)) * channels
    frames = (_frame(number, block, channels, subframes) for number in range(blocks))
    return b"".join([b"fLaC", _stream_info(blocks * block, rate, channels, block), *frames])


def seconds(length: float, rate: int, value: int = 0) -> bytes:
    """Return FLAC of about so many seconds, in the largest blocks."""
    return constant(round(length * rate / LARGEST_BLOCK), rate, value)


def _stream_info(samples: int, rate: int, channels: int, block: int) -> bytes:
    # 20 bits of sample rate, 3 of channels, 5 of bits a sample, 36 of the number of samples.
    packed = rate << 44 | (channels - 1) << 41 | 15 << 36 | samples
    body = struct.pack(">HH", block, block) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    return b"\x80" + len(body).to_bytes(3, "big") + body


def _frame(number: int, block: int, channels: int, subframes: bytes) -> bytes:
    kind = (channels - 1) << 4 | _SIXTEEN_BIT_SAMPLES << 1
    head = struct.pack(">HBB", _HEADER, _SIXTEEN_BITS_OF_SIZE << 4, kind)
    head += _utf8(number) + struct.pack(">H", block - 1)
    frame = head + bytes([_crc(head, _CRC8, 8)]) + subframes
    return frame + struct.pack(">H", _crc(frame, _CRC16, 16))


def _utf8(number: int) -> bytes:
    """Encode a number of up to 31 bits as FLAC does: UTF-8, surrogates included."""
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
