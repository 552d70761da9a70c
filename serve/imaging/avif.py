"""Checks the boxes and AV1 headers of an AVIF image before it is decoded.

The decoder reads a whole file at once and cannot be stopped: it looks up items in quadratic time while it holds the
GIL, scales each item to the size claimed for it, and decodes every frame. So the tables are limited
here, and claimed sizes have to be the real ones.

Formats: ISO/IEC 14496-12 (boxes, tracks) and ISO/IEC 23008-12 (items).
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from serve.errors import TooComplex, TooManyFrames, TooManyPixels, UndecodableImage
from serve.imaging.av1 import FRAME_HEADERS, SEQUENCE_HEADER, Size, frame_size, units

Pieces = tuple[tuple[int, int], ...]  # first byte and length of each

# Boxes of a file, and properties among them; ordinary files have thirty.
_BOXES: Final = 2000
# Bytes of the tables of items together; an image of a thousand tiles has 40 KB.
_TABLE_BYTES: Final = 64 * 1024
_TABLES: Final = (b"iloc", b"iinf", b"iref", b"ipma", b"grpl")
_EXTENTS: Final = 4096
# Frames within one item or sample: layers of a progressive image, of which AV1 has four.
_LAYERS: Final = 8
# Units of an item's AV1 data: tile groups, metadata.
_UNITS: Final = 1000
# All that may be decoded for one image beside it: transparency, and what its tiles have too much.
_TIMES_THE_PIXELS: Final = 3
# Bytes of an image's EXIF, of which Pillow makes objects.
_EXIF_BYTES: Final = 256 * 1024

# Of which a file's items have one each.
_SINGLE: Final = (b"iinf", b"iloc", b"iprp", b"idat")
_AV01: Final = int.from_bytes(b"av01", "big")
# What of a track is looked at.
_TRACK_BOXES: Final = (b"tkhd", b"stsd", b"stsz", b"stco", b"co64", b"stsc", b"stts", b"stss")


@dataclass
class _Items:
    """A file's items by their ids: type, claimed sizes in the order of the properties, where their bytes are."""

    kinds: dict[int, bytes] = field(default_factory=dict)
    properties: list[Size | None] = field(default_factory=list)
    associated: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    within: dict[int, int] = field(default_factory=dict)  # where an item's extents are counted from
    data_start: int = 0  # of the `idat` box's bytes

    def pieces_of(self, item: int) -> Pieces:
        within = self.data_start if self.within.get(item) == 1 else 0
        return tuple((within + start, length) for start, length in self.extents[item])


def require_modest_avif(data: bytes, max_pixels: int, max_frames: int) -> None:
    """Raises one of this module's errors for a file that claims other than it has, or has more than a decoder should
    be asked for."""
    try:
        _Reader(data, max_pixels, max_frames).check()
    except (struct.error, IndexError, KeyError) as error:
        raise _corrupt("") from error


def _corrupt(claim: str) -> UndecodableImage:
    return UndecodableImage(f"The AVIF image cannot be decoded: {claim}it is truncated or corrupt.")


class _Reader:
    def __init__(self, data: bytes, max_pixels: int, max_frames: int) -> None:
        self._data = data
        self._max_pixels = max_pixels
        self._max_frames = max_frames
        self._boxes_seen = 0
        self._table_bytes = 0
        self._pixels = 0
        self._coded: dict[Pieces, tuple[int, set[Size]]] = {}

    def check(self) -> None:
        for kind, start, end in self._boxes(0, len(self._data)):
            if kind == b"meta":
                self._check_items(start + 4, end)
            elif kind == b"moov":
                for inner, first, last in self._boxes(start, end):
                    if inner == b"trak":
                        self._check_track(first, last)

    def _boxes(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yields kind, first byte and end of the content of each box between two positions."""
        while start + 8 <= end:
            self._boxes_seen += 1
            if self._boxes_seen > _BOXES:
                raise TooComplex(f"The AVIF image has more boxes than the limit, {_BOXES} boxes.")
            size, kind = struct.unpack_from(">I4s", self._data, start)
            first = start + 8
            if size == 1:
                (size,) = struct.unpack_from(">Q", self._data, first)
                first += 8
            last = end if size == 0 else min(end, start + size)
            if last < first:
                raise _corrupt("")
            yield kind, first, last
            start = last

    def _number(self, size: int, position: int) -> int:
        """Returns an unsigned number of `size` bytes."""
        if position + size > len(self._data):
            raise IndexError
        return int.from_bytes(self._data[position : position + size], "big")

    # Items ------------------------------------------------------------------------------------------------------------

    def _check_items(self, start: int, end: int) -> None:
        items, seen = _Items(), set[bytes]()
        for kind, first, last in self._boxes(start, end):
            self._count_table(kind, first, last)
            if kind in _SINGLE and kind in seen:
                raise _corrupt("")
            seen.add(kind)
            if kind == b"iinf":
                self._read_kinds(items, first, last)
            elif kind == b"iloc":
                self._read_places(items, first, last)
            elif kind == b"idat":
                items.data_start = first
            elif kind == b"iprp":
                self._read_properties(items, first, last)
        # Items that are alike may have the same bytes, as tiles of one colour have; several pieces are joined anew.
        every = [items.pieces_of(item) for item in items.extents]
        held = [*{pieces for pieces in every if len(pieces) == 1}, *(pieces for pieces in every if len(pieces) != 1)]
        if sum(length for pieces in held for _, length in pieces) > len(self._data):
            raise _corrupt("its items have more bytes than the file; ")
        for item, kind in items.kinds.items():
            if kind in (b"av01", b"grid"):
                self._check_item(items, item, kind)
            elif kind == b"Exif" and sum(length for _, length in items.extents.get(item, [])) > _EXIF_BYTES:
                raise TooComplex(f"The AVIF image has more EXIF data than the limit of {_EXIF_BYTES} bytes.")

    def _count_table(self, kind: bytes, start: int, end: int) -> None:
        if kind in _TABLES:
            self._table_bytes += end - start
            if self._table_bytes > _TABLE_BYTES:
                raise TooComplex(f"The AVIF image's tables of items are larger than the limit, {_TABLE_BYTES} bytes.")

    def _read_kinds(self, items: _Items, start: int, end: int) -> None:
        wide = 4 if self._number(1, start) else 2
        entries = list(self._boxes(start + 4 + wide, end))
        if len(entries) != self._number(wide, start + 4):
            raise _corrupt("")
        for kind, first, _ in entries:
            version = self._number(1, first)
            size = {2: 2, 3: 4}.get(version, 0)
            item = self._number(size, first + 4)
            if kind != b"infe" or not size or item in items.kinds:
                raise _corrupt("")
            items.kinds[item] = self._data[first + 6 + size : first + 10 + size]

    def _read_places(self, items: _Items, position: int, end: int) -> None:
        version, sizes = self._number(1, position), self._number(2, position + 4)
        offset, length, base, index = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15, sizes & 15 if version else 0
        wide = 4 if version == 2 else 2
        count = self._number(wide, position + 6)
        position += 6 + wide
        seen = 0
        for _ in range(count):
            item = self._number(wide, position)
            position += wide
            if version:
                items.within[item] = self._number(2, position) & 15
                position += 2
            start = self._number(base, position + 2)
            extents = self._number(2, position + 2 + base)
            position += 4 + base
            seen += 1 + extents
            if seen > _EXTENTS:
                raise TooComplex(f"The AVIF image's items are in more pieces than the limit, {_EXTENTS} pieces.")
            if item in items.extents or position + extents * (index + offset + length) > end:
                raise _corrupt("")
            places = items.extents[item] = []
            for _ in range(extents):
                at = start + self._number(offset, position + index)
                places.append((at, self._number(length, position + index + offset)))
                position += index + offset + length

    def _read_properties(self, items: _Items, start: int, end: int) -> None:
        for kind, first, last in self._boxes(start, end):
            self._count_table(kind, first, last)
            if kind == b"ipco":
                if items.properties:
                    raise _corrupt("")
                for inner, body, _ in self._boxes(first, last):
                    is_size = inner == b"ispe"
                    items.properties.append((self._number(4, body + 4), self._number(4, body + 8)) if is_size else None)
            elif kind == b"ipma":
                wide, index = 4 if self._number(1, first) else 2, 1 + (self._number(3, first + 1) & 1)
                position = first + 8
                for _ in range(self._number(4, first + 4)):
                    item, count = self._number(wide, position), self._number(1, position + wide)
                    position += wide + 1
                    if position + count * index > last:
                        raise _corrupt("")
                    for _ in range(count):
                        items.associated[item].append(self._number(index, position) & (1 << 8 * index - 1) - 1)
                        position += index

    def _check_item(self, items: _Items, item: int, kind: bytes) -> None:
        pieces = items.pieces_of(item)
        sizes = [items.properties[index - 1] for index in items.associated[item] if index]
        claimed = next((size for size in sizes if size), None)
        if claimed is None:
            raise _corrupt("a part of it has no size; ")
        if kind == b"grid":
            data = self._joined(pieces)
            held = struct.unpack_from(">II" if data[1] & 1 else ">HH", data, 4)
            if held != claimed:
                raise _corrupt(_claim(claimed, held))
        else:
            self._check_frames(pieces, claimed)

    def _joined(self, pieces: Pieces) -> bytes:
        return b"".join(self._data[start : start + length] for start, length in pieces)

    # Tracks, of animations --------------------------------------------------------------------------------------------

    def _check_track(self, start: int, end: int) -> None:
        boxes: dict[bytes, int] = {}
        inside = [(start, end)]
        for first, last in inside:
            for kind, body, body_end in self._boxes(first, last):
                if kind in (b"mdia", b"minf", b"stbl"):
                    inside.append((body, body_end))
                elif kind == b"meta":
                    self._check_items(body + 4, body_end)
                elif kind in _TRACK_BOXES and boxes.setdefault(kind, body) != body:
                    raise _corrupt("")
        if b"stsd" in boxes and self._number(4, boxes[b"stsd"] + 4) != 1:
            raise _corrupt("")
        if b"stsd" not in boxes or self._number(4, boxes[b"stsd"] + 12) != _AV01:
            return  # which the decoder passes over
        samples, runs, wide = boxes[b"stsz"], boxes[b"stsc"], 8 if b"co64" in boxes else 4
        if wide == 8 and b"stco" in boxes:
            raise _corrupt("")
        chunks = boxes[b"co64" if wide == 8 else b"stco"]
        for count in (
            samples + 8,
            *(boxes[kind] + 4 for kind in (b"stsc", b"stts", b"stss") if kind in boxes),
            chunks + 4,
        ):
            self._count_frames(self._number(4, count))
        self._count_frames(self._samples(self._number(4, chunks + 4), runs + 8, self._number(4, runs + 4)))
        header = boxes[b"tkhd"] + (88 if self._number(1, boxes[b"tkhd"]) else 76)
        size = (self._number(4, header) >> 16, self._number(4, header + 4) >> 16)
        place, length = self._number(wide, chunks + 8), self._number(4, samples + 4) or self._number(4, samples + 12)
        self._check_frames(((place, length),), size)

    def _samples(self, chunks: int, runs_at: int, count: int) -> int:
        """Returns the number of samples in the chunks; all chunks of a run have the same number."""
        runs = [struct.unpack_from(">II", self._data, runs_at + 12 * n) for n in range(count)]
        starts = [first for first, _ in runs] + [chunks + 1]
        return sum(
            each * max(0, after - first) for (_, each), (first, after) in zip(runs, pairwise(starts), strict=True)
        )

    def _count_frames(self, entries: int) -> None:
        """Checks the number of entries of a track's table, at most one per frame."""
        if entries > self._max_frames:
            raise TooManyFrames(f"The image has {entries} frames; the limit is {self._max_frames} frames.")

    # AV1 --------------------------------------------------------------------------------------------------------------

    def _check_frames(self, pieces: Pieces, claimed: Size) -> None:
        """Checks the size in the sequence headers of one item or sample, and how many frames it has to decode."""
        if pieces not in self._coded:
            self._coded[pieces] = _frames_of(self._joined(pieces))
        frames, sizes = self._coded[pieces]
        for held in sizes:
            if held != claimed:
                raise _corrupt(_claim(claimed, held))
        self._pixels += claimed[0] * claimed[1] * max(1, frames)
        if self._pixels > _TIMES_THE_PIXELS * self._max_pixels:
            raise TooManyPixels(
                f"The AVIF image's parts have {self._pixels} pixels together; the limit is "
                f"{_TIMES_THE_PIXELS * self._max_pixels} pixels."
            )


def _frames_of(data: bytes) -> tuple[int, set[Size]]:
    """Returns how many frames AV1 data has, and the sizes in its sequence headers, at least one."""
    frames, sizes = 0, set()
    for number, (kind, body) in enumerate(units(data)):
        if kind == SEQUENCE_HEADER:
            sizes.add(frame_size(body))
        frames += kind in FRAME_HEADERS
        if frames > _LAYERS or number > _UNITS:
            raise TooComplex(f"The AVIF image has a part of more frames than the limit, {_LAYERS} frames.")
    if not sizes:
        raise _corrupt("")
    return frames, sizes


def _claim(claimed: Size, held: tuple[int, ...]) -> str:
    return f"it claims {claimed[0]} × {claimed[1]} pixels and has {held[0]} × {held[1]}; "
