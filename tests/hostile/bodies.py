"""Bodies that are laborious to read, for the event loop or for Python's lock: kind → how one is made, what is told."""

import json
import random
from functools import cache
from typing import Final

from tests.hostile.requests import END, FORM, SOUND, Attack, Maker, head, part, post
from tests.hostile.tensors import infer

# What is repeated, and the boundary that it nearly is.
LONG: Final = b"b" * 256
NEAR: Final = (
    (b"\r\n--b\0", b"b"),
    (b"\r\n--b\r", b"b"),
    (b"\r\n--b\r\r\n", b"b"),
    (b"\r\n--b-", b"b"),
    (b"\r\n--b ", b"b"),
    (b"\r\n--b \t\0", b"b"),
    (b"\r\n--" + LONG[:-1] + b"c", LONG),
    (b"\r\n--" + LONG[:-1], LONG),
    (b"\n--" + LONG, LONG),
    (b"b", LONG),
    (b"-", b"-" * 250 + b"a"),
)
FLOODS: Final = (b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"-", b"--", b" ", b"\0", b":", b"b0undary")
MOST_BYTES: Final = 2_000_000
MOST_IN_CHUNKS: Final = 200_000


def form_of(boundary: bytes, filling: bytes, name: bytes = b"file") -> bytes:
    start = b"--" + boundary + b'\r\nContent-Disposition: form-data; name="' + name + b'"; filename="a"\r\n\r\n'
    return start + filling + b"\r\n--" + boundary + b"--\r\n"


def repeated(chance: random.Random, unit: bytes, most: int = MOST_BYTES) -> bytes:
    """So often that it makes up a body, short or long."""
    return unit * (chance.choice((1000, most // 10, most)) // len(unit))


def near_boundaries(chance: random.Random) -> Attack:
    unit, boundary = chance.choice(NEAR)
    filling = repeated(chance, unit)
    form = chance.choice((form_of(boundary, filling), form_of(boundary, filling, b"note"), filling))
    header = b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n"
    return Attack(post(form, header), frozenset({400, 415}))


def floods(chance: random.Random) -> Attack:
    """In a file, in another part, ahead of all parts, and behind them."""
    flood = repeated(chance, chance.choice(FLOODS))
    form = chance.choice((part(flood), part(flood, b'form-data; name="note"'), flood, part(b"x") + END + flood))
    return Attack(post(form + END, FORM), frozenset({400, 415}))


@cache
def in_chunks(data: bytes, size: int) -> bytes:
    """A body in chunks of so many bytes."""
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def one_byte_chunks(chance: random.Random) -> Attack:
    chunked = b"Transfer-Encoding: chunked\r\n"
    size = chance.choice((1, 1, 2, 3))
    if chance.random() < 0.3:
        return Attack(head(more=FORM + chunked) + in_chunks(part(SOUND["rgb.jpg"]) + END, size), frozenset({200}))
    boundary = chance.choice((b"b", LONG))
    form = form_of(boundary, b"\r\n--b" * (MOST_IN_CHUNKS // 5))
    header = b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n"
    return Attack(head(more=header + chunked) + in_chunks(form, size), frozenset({400, 415}))


def tiny_parts(chance: random.Random) -> Attack:
    """As many as there may be, and one more where that is refused."""
    files, others = chance.choice(((32, 32), (2, 32), (33, 0), (1, 33)))
    form = part(b"x") * files + part(b"", b'form-data; name="note"') * others
    return Attack(post(form + END, FORM), frozenset({413 if files > 32 or others > 32 else 200}))


def part_headers(chance: random.Random) -> Attack:
    """Parts with nothing but headers, whole or a few bytes at a time."""
    long = chance.choice((b'form-data; name="note"' + b";" * 4000, b"x" * 4100, b'form-data; name="' + b'\\"' * 2000))
    more = b"X: " + b"y" * chance.choice((1, 4200, 4300)) + b"\r\n"
    form = part(b"x", long, more * chance.choice((1, 7, 8))) * chance.choice((1, 31))
    return Attack(post(form + END, FORM), frozenset({400}), step=chance.choice((1 << 20, 1 << 20, 997)))


def numbers(one: bytes) -> bytes:
    return b'{"inputs":[{"shape":[' + b",".join([one] * min(600_000, 8_000_000 // (len(one) + 1))) + b"]}]}"


# JSON that takes long to read, up to what a request may have of it.
LABORIOUS: Final = (
    lambda: numbers(b"1"),
    lambda: numbers(b"null"),
    lambda: numbers(b"9" * 4300),
    lambda: numbers(b"1.23456e-300"),
    lambda: numbers(b"2.2250738585072011360574097967091319759348e-308"),
    lambda: b'{"id":"' + b"\\u00e9" * 1_300_000 + b'"}',
    lambda: b'{"id":"' + b"\xed\xa0\x80" * 2_600_000 + b'"}',
    lambda: json.dumps({f"{number:x}": 0 for number in range(400_000)}).encode(),
)


@cache
def laborious(number: int) -> bytes:
    return LABORIOUS[number]()


def laborious_json(chance: random.Random) -> Attack:
    return Attack(infer(laborious(chance.randrange(len(LABORIOUS))), b""), frozenset({400}))


# How often each kind comes, beside those of `tests.hostile.requests`.
KINDS: Final[dict[Maker, int]] = {
    near_boundaries: 30,
    floods: 20,
    one_byte_chunks: 10,
    tiny_parts: 10,
    part_headers: 10,
    laborious_json: 2,
}
