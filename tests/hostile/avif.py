"""Builds AVIF files from boxes and the output of Pillow's encoder, so that any part can be malformed."""

import io
import struct
from dataclasses import dataclass, field, replace

from PIL import Image

FRAME_HEADERS = (3, 6, 7)

Extent = tuple[int, int]  # offset from the item's first byte, length


@dataclass(frozen=True)
class Item:
    """An item of a file.

    Attributes:
        kind: Four letters.
        size: Claimed width and height.
        properties: More property boxes.
        extents: Where its bytes are; empty for all of `data`.
    """

    kind: bytes
    data: bytes = b""
    size: tuple[int, int] | None = None
    properties: bytes = b""
    extents: list[Extent] = field(default_factory=list)


def box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def full(kind: bytes, version: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24), *parts)


def encoded(*images: Image.Image) -> bytes:
    buffer = io.BytesIO()
    images[0].save(buffer, "AVIF", save_all=len(images) > 1, append_images=images[1:], speed=10)
    return buffer.getvalue()


def coded(width: int, height: int) -> Item:
    """An image of one colour."""
    plain = encoded(Image.new("RGB", (width, height), (10, 200, 30)))
    config = plain.index(b"av1C") - 4
    length = int.from_bytes(plain[config : config + 4], "big")
    data = plain[plain.index(b"mdat") + 4 :]
    return Item(b"av01", data, (width, height), plain[config : config + length])


def avif(items: list[Item], more_extents: bytes = b"", references: bytes = b"", more_kinds: bytes = b"") -> bytes:
    """A file of these items; the first is the image.

    Args:
        more_extents: More entries of the `iloc` table.
        references: An `iref` box.
        more_kinds: Entries of `iinf` beyond its count.
    """
    entries = [
        full(b"infe", 2, struct.pack(">HH4s", number, 0, item.kind), b"\0") for number, item in enumerate(items, 1)
    ]
    # Equal properties are stored once, as encoders do: an index has only seven bits.
    properties: dict[bytes, bytes] = {}
    index, belongs = 1, []
    for number, item in enumerate(items, 1):
        own = (full(b"ispe", 0, struct.pack(">II", *item.size)) if item.size else b"") + item.properties
        if own and own not in properties:
            count = 2 if item.kind == b"av01" else 1
            properties[own] = struct.pack(">B", count) + bytes(range(index, index + count))
            index += count
        if own:
            belongs.append(struct.pack(">H", number) + properties[own])

    def head(start: int) -> bytes:
        extents, at = [], start
        for number, item in enumerate(items, 1):
            own = [(at + first, length) for first, length in item.extents or [(0, len(item.data))]]
            extents.append(
                struct.pack(">HHH", number, 0, len(own)) + b"".join(struct.pack(">II", *each) for each in own)
            )
            at += len(item.data)
        locations = struct.pack(">HH", 0x4400, (len(items) + len(more_extents) // 8) & 0xFFFF), *extents, more_extents
        meta = full(
            b"meta",
            0,
            full(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
            full(b"pitm", 0, b"\0\1"),
            full(b"iloc", 0, *locations),
            full(b"iinf", 0, struct.pack(">H", len(items) & 0xFFFF), *entries, more_kinds),
            references,
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", 0, struct.pack(">I", len(belongs)), *belongs)),
        )
        data = b"".join(item.data for item in items)
        return box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf") + meta + struct.pack(">I4s", 8 + len(data), b"mdat")

    return head(len(head(0))) + b"".join(item.data for item in items)


def avif_of_size(width: int, height: int) -> bytes:
    """A small image that claims to be larger."""
    return avif([replace(coded(640, 480), size=(width, height))])


def avif_grid(side: int, across: int, down: int, claimed: tuple[int, int] | None = None, shared: bool = False) -> bytes:
    """An image of equal tiles. shared: whether all tiles refer to the same bytes."""
    width, height = side * across, side * down
    grid = struct.pack(">BBBBHH", 0, 0, down - 1, across - 1, width, height)
    tile = coded(side, side)
    again = replace(tile, data=b"", extents=[(-len(tile.data), len(tile.data))]) if shared else tile
    tiles = [tile, *[again] * (across * down - 1)]
    # `dimg`: what the image is derived from.
    numbers = b"".join(struct.pack(">H", number) for number in range(2, 2 + len(tiles)))
    references = full(b"iref", 0, box(b"dimg", struct.pack(">HH", 1, len(tiles)), numbers))
    return avif([Item(b"grid", grid, claimed or (width, height)), *tiles], references=references)


def frames_in_one(item: Item, times: int) -> Item:
    """The item with its frame repeated so many times."""
    start, position = 0, 0
    while position < len(item.data):
        kind, position = item.data[position] >> 3 & 15, position + 1
        size = shift = 0
        while True:
            byte = item.data[position]
            position += 1
            size |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                break
        if kind in FRAME_HEADERS:
            break
        position += size
        start = position
    return replace(item, data=item.data[:start] + item.data[start:] * times)


def avif_of_associations(boxes: int, count: int) -> bytes:
    """Property tables that claim so many entries each, which overlap the bytes that follow."""
    more = full(b"ipma", 0, struct.pack(">I", count)) * boxes
    return _with_more(avif([coded(64, 64)]), more, b"iprp", b"meta") + bytes(4 * count)


def avif_named_twice() -> bytes:
    """An image that claims to be smaller, with a second entry, beyond the count, of another kind."""
    other = full(b"infe", 2, struct.pack(">HH4s", 1, 0, b"zzzz"), b"\0")
    return avif([replace(coded(2_000, 2_000), size=(64, 64))], more_kinds=other)


def avif_of_two_descriptions() -> bytes:
    """An animation that claims to be smaller and whose first description is of another codec."""
    data, moov = _movie(512)
    start = moov.index(b"stsd")
    description = bytes(moov[start + 12 : start - 4 + int.from_bytes(moov[start - 4 : start], "big")])
    moov[start + 8 : start + 12] = struct.pack(">I", 2)
    moov[start + 16 : start + 20] = b"zzzz"
    header = moov.index(b"tkhd") + 4 + (88 if moov[moov.index(b"tkhd") + 4] else 76)
    moov[header : header + 8] = struct.pack(">II", 64 << 16, 64 << 16)
    return data + _with_more(bytes(moov), description, b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov")


def avif_of_track_items(count: int) -> bytes:
    """An animation whose track has items."""
    data, moov = _movie(64)
    entries = (full(b"infe", 2, struct.pack(">HH4s", number, 0, b"mime"), b"\0") for number in range(count))
    kinds = full(b"iinf", 0, struct.pack(">H", count), *entries)
    meta = full(b"meta", 0, full(b"hdlr", 0, bytes(4), b"pict", bytes(13)), kinds)
    return data + _with_more(bytes(moov), meta, b"trak", b"moov")


def _movie(side: int) -> tuple[bytes, bytearray]:
    """An animation with its `moov` renamed, and the `moov` to append: all other offsets stay."""
    data = _animated(side)
    start = data.index(b"moov") - 4
    moov = data[start : start + int.from_bytes(data[start : start + 4], "big")]
    return data.replace(b"moov", b"free"), bytearray(moov)


def _with_more(data: bytes, more: bytes, *names: bytes) -> bytes:
    """The file with bytes appended to the box `names[0]`, which is nested in the other boxes."""
    grown = bytearray(data)
    start = grown.index(names[0]) - 4
    end = start + int.from_bytes(grown[start : start + 4], "big")
    grown[end:end] = more
    for name in names:
        start = grown.index(name) - 4
        grown[start : start + 4] = struct.pack(">I", int.from_bytes(grown[start : start + 4], "big") + len(more))
    return bytes(grown)


def _animated(side: int = 64) -> bytes:
    return encoded(*(Image.new("RGB", (side, side), (shade, 10, 10)) for shade in (0, 90, 180)))


def avif_of_samples(count: int) -> bytes:
    """An animation with frames of one byte each."""
    data = bytearray(_animated())
    for name, at, values in ((b"stsz", 8, (1, count)), (b"stsc", 16, (count,)), (b"stts", 12, (count,))):
        start = data.index(name) + at
        data[start : start + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    return bytes(data) + bytes(count)


def avif_of_runs(count: int) -> bytes:
    """An animation whose only chunk claims so many frames by its run length alone."""
    data = bytearray(_animated())
    start = data.index(b"stsc") + 16
    data[start : start + 4] = struct.pack(">I", count)
    return bytes(data)
