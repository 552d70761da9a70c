"""Bodies that are slow to parse and would block the event loop or hold the GIL."""

import json
import random
from functools import cache
from typing import Final

from tests.hostile.requests import END, FORM, VALID_IMAGES, Attack, Maker, head, part, post
from tests.hostile.tensors import infer

# What is repeated, and the boundary that it resembles.
LONG_BOUNDARY: Final = b"b" * 256
NEAR_BOUNDARIES: Final = (
    (b"\r\n--b\0", b"b"),
    (b"\r\n--b\r", b"b"),
    (b"\r\n--b\r\r\n", b"b"),
    (b"\r\n--b-", b"b"),
    (b"\r\n--b ", b"b"),
    (b"\r\n--b \t\0", b"b"),
    (b"\r\n--" + LONG_BOUNDARY[:-1] + b"c", LONG_BOUNDARY),
    (b"\r\n--" + LONG_BOUNDARY[:-1], LONG_BOUNDARY),
    (b"\n--" + LONG_BOUNDARY, LONG_BOUNDARY),
    (b"b", LONG_BOUNDARY),
    (b"-", b"-" * 250 + b"a"),
)
DELIMITERS: Final = (b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"-", b"--", b" ", b"\0", b":", b"b0undary")
MAX_BYTES: Final = 2_000_000
MAX_CHUNKED_BYTES: Final = 200_000


def form_of(boundary: bytes, filling: bytes, name: bytes = b"file") -> bytes:
    start = b"--" + boundary + b'\r\nContent-Disposition: form-data; name="' + name + b'"; filename="a"\r\n\r\n'
    return start + filling + b"\r\n--" + boundary + b"--\r\n"


def repeated(rng: random.Random, unit: bytes, limit: int = MAX_BYTES) -> bytes:
    """Repeat a unit until it fills a body, short or long."""
    return unit * (rng.choice((1000, limit // 10, limit)) // len(unit))


def near_boundaries(rng: random.Random) -> Attack:
    unit, boundary = rng.choice(NEAR_BOUNDARIES)
    filling = repeated(rng, unit)
    form = rng.choice((form_of(boundary, filling), form_of(boundary, filling, b"note"), filling))
    header = b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n"
    return Attack(post(form, header), frozenset({400, 415}))


def repeated_delimiters(rng: random.Random) -> Attack:
    """Repeated delimiters in a file, in another part, before all parts, or after them."""
    delimiters = repeated(rng, rng.choice(DELIMITERS))
    form = rng.choice(
        (part(delimiters), part(delimiters, b'form-data; name="note"'), delimiters, part(b"x") + END + delimiters)
    )
    return Attack(post(form + END, FORM), frozenset({400, 415}))


@cache
def in_chunks(data: bytes, size: int) -> bytes:
    """The body in chunked transfer coding, with chunks of `size` bytes."""
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def one_byte_chunks(rng: random.Random) -> Attack:
    chunked = b"Transfer-Encoding: chunked\r\n"
    size = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.3:
        return Attack(
            head(more=FORM + chunked) + in_chunks(part(VALID_IMAGES["rgb.jpg"]) + END, size), frozenset({200})
        )
    boundary = rng.choice((b"b", LONG_BOUNDARY))
    form = form_of(boundary, b"\r\n--b" * (MAX_CHUNKED_BYTES // 5))
    header = b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n"
    return Attack(head(more=header + chunked) + in_chunks(form, size), frozenset({400, 415}))


def tiny_parts(rng: random.Random) -> Attack:
    """As many parts as allowed, or one more."""
    files, others = rng.choice(((32, 32), (2, 32), (33, 0), (1, 33)))
    form = part(b"x") * files + part(b"", b'form-data; name="note"') * others
    return Attack(post(form + END, FORM), frozenset({413 if files > 32 or others > 32 else 200}))


def part_headers(rng: random.Random) -> Attack:
    """Parts with large headers, sent at once or in small pieces."""
    long = rng.choice((b'form-data; name="note"' + b";" * 4000, b"x" * 4100, b'form-data; name="' + b'\\"' * 2000))
    more = b"X: " + b"y" * rng.choice((1, 4200, 4300)) + b"\r\n"
    form = part(b"x", long, more * rng.choice((1, 7, 8))) * rng.choice((1, 31))
    return Attack(post(form + END, FORM), frozenset({400}), step=rng.choice((1 << 20, 1 << 20, 997)))


def numbers(one: bytes) -> bytes:
    return b'{"inputs":[{"shape":[' + b",".join([one] * min(600_000, 8_000_000 // (len(one) + 1))) + b"]}]}"


# JSON that takes long to parse, up to the size limit.
SLOW_JSON: Final = (
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
def slow_json_body(number: int) -> bytes:
    return SLOW_JSON[number]()


def slow_json(rng: random.Random) -> Attack:
    return Attack(infer(slow_json_body(rng.randrange(len(SLOW_JSON))), b""), frozenset({400}))


# Weights of the kinds, relative to those in `requests.KINDS`.
KINDS: Final[dict[Maker, int]] = {
    near_boundaries: 30,
    repeated_delimiters: 20,
    one_byte_chunks: 10,
    tiny_parts: 10,
    part_headers: 10,
    slow_json: 2,
}
