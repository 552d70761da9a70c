"""Parses the units of AV1 data and the frame size in its sequence headers (AV1 specification, 5.3 to 5.5).

Raises `IndexError` for truncated data.
"""

from collections.abc import Iterator
from typing import Final

Size = tuple[int, int]

SEQUENCE_HEADER: Final = 1
FRAME_HEADERS: Final = (3, 6, 7)
# What a sequence header needs at most, with 32 operating points.
_HEADER_BYTES: Final = 512


def units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the type and first bytes of each unit (OBU) of AV1 data."""
    position = 0
    while position < len(data):
        header = data[position]
        position += 2 if header & 4 else 1
        size = len(data) - position
        if header & 2:
            size = shift = 0
            while True:  # LEB128
                byte = data[position]
                position += 1
                size |= (byte & 127) << shift
                shift += 7
                if not byte & 128 or shift >= 56:
                    break
        yield header >> 3 & 15, data[position : position + min(size, _HEADER_BYTES)]
        position += size


def frame_size(header: bytes) -> Size:
    """Returns the largest width and height of a frame, from a sequence header's first bytes."""
    bits = _Bits(header)
    bits.take(4)  # profile, still picture
    if bits.take(1):  # reduced header
        bits.take(5)
    else:
        delay_bits = _skip_timing(bits)
        has_delay = bits.take(1)
        for _ in range(bits.take(5) + 1):  # operating points
            bits.take(12)
            if bits.take(5) > 7:  # level
                bits.take(1)
            if delay_bits and bits.take(1):
                bits.take(2 * delay_bits + 1)
            if has_delay and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_timing(bits: "_Bits") -> int:
    """Bits of each operating point's delays, 0 where there are none."""
    if not bits.take(1):
        return 0
    bits.take(64)
    if bits.take(1):  # equal picture intervals: their length in Exp-Golomb
        zeros = 0
        while not bits.take(1):
            zeros += 1
        bits.take(zeros if zeros < 32 else 0)
    if not bits.take(1):
        return 0
    delay_bits = bits.take(5) + 1
    bits.take(32 + 5 + 5)
    return delay_bits


class _Bits:
    """Unsigned numbers out of a row of bits."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1
