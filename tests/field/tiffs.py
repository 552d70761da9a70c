"""Writes TIFFs (TIFF 6.0, BigTIFF) of any samples, bits, colours, planes, compression and byte order."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from PIL import Image

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
UNCOMPRESSED, LZW, OLD_JPEG, JPEG, DEFLATE, PACKBITS, THUNDERSCAN, OLD_DEFLATE = 1, 5, 6, 7, 8, 32773, 32809, 32946
# Types of tags, and the letters of `struct` for them.
SHORT: Final = (3, "H")
_LONG, _LONG8 = (4, "I"), (16, "Q")
Tag = tuple[tuple[int, str], Sequence[int]]


@dataclass(frozen=True)
class Layout:
    """How samples are stored; the names are those of the tags, `order` is that of `struct`."""

    bits: int = 8
    photometric: int = RGB
    order: str = "<"
    sample_format: int = UNSIGNED
    planar: int = 1
    compression: int = UNCOMPRESSED
    predictor: int = 1
    fill_order: int = 1
    extra: tuple[int, ...] = ()
    tile: tuple[int, int] | None = None
    rows_per_strip: int = 7
    big: bool = False
    palette: Sequence[int] = ()
    more: Mapping[int, Tag] = field(default_factory=dict)


def write(samples: np.ndarray, layout: Layout) -> bytes:
    """Returns a TIFF of one page.

    Args:
        samples: `[height, width, samples]`, of integers or floats.
        layout: how they are stored.
    """
    height, width, count = samples.shape
    planes = [samples] if layout.planar == 1 else [samples[..., index : index + 1] for index in range(count)]
    parts = [_encode(part, layout) for plane in planes for part in _parts(plane, layout)]
    offset_type = _LONG8 if layout.big else _LONG
    tags: dict[int, Tag] = {
        256: (_LONG, [width]),
        257: (_LONG, [height]),
        258: (SHORT, [layout.bits] * count),
        259: (SHORT, [layout.compression]),
        262: (SHORT, [layout.photometric]),
        266: (SHORT, [layout.fill_order]),
        277: (SHORT, [count]),
        284: (SHORT, [layout.planar]),
        317: (SHORT, [layout.predictor]),
        339: (SHORT, [layout.sample_format] * count),
    }
    if layout.predictor == 1:
        del tags[317]
    if layout.extra:
        tags[338] = (SHORT, layout.extra)
    if layout.palette:
        tags[320] = (SHORT, layout.palette)
    start = 16 if layout.big else 8
    offsets = [start + sum(map(len, parts[:index])) for index in range(len(parts))]
    if layout.tile:
        tags |= {322: (_LONG, [layout.tile[0]]), 323: (_LONG, [layout.tile[1]])}
    else:
        tags[278] = (_LONG, [layout.rows_per_strip])
    at, length = (324, 325) if layout.tile else (273, 279)
    tags |= {at: (offset_type, offsets), length: (_LONG, [len(part) for part in parts]), **layout.more}
    if layout.compression == OLD_JPEG:
        tags |= {513: (_LONG, offsets), 514: (_LONG, [len(part) for part in parts])}
    data = b"".join(parts)
    data += b"\0" * (len(data) % 2)
    mark = {"<": b"II", ">": b"MM"}[layout.order]
    header = struct.pack(f"{layout.order}HHHQ", 43, 8, 0, start + len(data)) if layout.big else b""
    header = mark + (header or struct.pack(f"{layout.order}HI", 42, start + len(data)))
    return header + data + _directory(tags, start + len(data), layout)


def _directory(tags: Mapping[int, Tag], start: int, layout: Layout) -> bytes:
    order, big = layout.order, layout.big
    entry_bytes, field_bytes = (20, 8) if big else (12, 4)
    after = start + (8 if big else 2) + entry_bytes * len(tags) + field_bytes
    entries, rest = b"", b""
    for tag, ((kind, letters), values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{letters * (len(values) // len(letters))}", *values)
        entries += struct.pack(f"{order}HH{'Q' if big else 'I'}", tag, kind, len(values) // len(letters))
        if len(packed) > field_bytes:
            entries += struct.pack(f"{order}{'Q' if big else 'I'}", after + len(rest))
            rest += packed + b"\0" * (len(packed) % 2)
        else:
            entries += packed.ljust(field_bytes, b"\0")
    return struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + entries + bytes(field_bytes) + rest


def _parts(plane: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """Cuts one plane into strips, or into tiles that repeat its border where they reach over it."""
    height, width = plane.shape[:2]
    if layout.tile is None:
        return [plane[top : top + layout.rows_per_strip] for top in range(0, height, layout.rows_per_strip)]
    across, down = layout.tile
    padded = np.pad(plane, [(0, -height % down), (0, -width % across), (0, 0)], "edge")
    return [
        padded[top : top + down, left : left + across]
        for top in range(0, height, down)
        for left in range(0, width, across)
    ]


def _encode(part: np.ndarray, layout: Layout) -> bytes:
    if layout.compression in (JPEG, OLD_JPEG):
        return _jpeg(part, convert=layout.compression == OLD_JPEG)
    encoded = _COMPRESS[layout.compression](_raw(part, layout))
    return encoded if layout.fill_order == 1 else np.packbits(_bits(encoded), bitorder="little").tobytes()


def _raw(part: np.ndarray, layout: Layout) -> bytes:
    rows, columns, count = part.shape
    if layout.sample_format == FLOAT:
        ordered = part.astype(f"{layout.order}f{layout.bits // 8}")
        return _float_differences(ordered) if layout.predictor == 3 else ordered.tobytes()
    if layout.predictor == 2:
        part = np.concatenate([part[:, :1], np.diff(part.astype(np.int64), axis=1)], axis=1)
    if layout.bits in (8, 16, 32, 64):
        return part.astype(np.int64).astype(f"{layout.order}u{layout.bits // 8}").tobytes()
    values = part.reshape(rows, columns * count).astype(np.int64)
    shifts = np.arange(layout.bits - 1, -1, -1)
    spread = (values[..., None] >> shifts & 1).astype(np.uint8)
    return np.packbits(spread.reshape(rows, -1), axis=1).tobytes()


def _float_differences(part: np.ndarray) -> bytes:
    """Applies the floating point predictor (TIFF Technical Note 3): bytes by significance, then their differences."""
    rows, columns, count = part.shape
    planes = part.astype(part.dtype.newbyteorder(">")).view(np.uint8).reshape(rows, columns * count, -1)
    shuffled = np.swapaxes(planes, 1, 2).reshape(rows, -1)
    shuffled[:, count:] -= shuffled[:, :-count].copy()
    return shuffled.tobytes()


def _jpeg(part: np.ndarray, convert: bool) -> bytes:
    """Encodes samples as they are, or converts RGB to YCbCr."""
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[part.shape[2]]
    image, buffer = Image.frombytes(mode, part.shape[1::-1], part.astype(np.uint8).tobytes()), io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0, keep_rgb=mode == "RGB" and not convert)
    return buffer.getvalue()


def _bits(data: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(data, np.uint8))


def _lzw(data: bytes) -> bytes:
    """Encodes with codes of nine bits only: the table is cleared before it grows beyond them."""
    codes: list[int] = []
    for start in range(0, len(data), 250):
        codes += [256, *data[start : start + 250]]
    codes.append(257)
    bits = (np.array(codes)[:, None] >> np.arange(8, -1, -1) & 1).astype(np.uint8)
    return np.packbits(bits.reshape(-1)).tobytes()


def _packbits(data: bytes) -> bytes:
    pieces = [data[start : start + 128] for start in range(0, len(data), 128)]
    return b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)


def _thunderscan(data: bytes) -> bytes:
    """Encodes each pixel of 4 bits as it is."""
    return bytes(0xC0 | part for byte in data for part in (byte >> 4, byte & 15))


_COMPRESS: dict[int, Callable[[bytes], bytes]] = {
    UNCOMPRESSED: bytes,
    LZW: _lzw,
    DEFLATE: zlib.compress,
    OLD_DEFLATE: zlib.compress,
    PACKBITS: _packbits,
    THUNDERSCAN: _thunderscan,
}
