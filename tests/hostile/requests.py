"""Requests that mean harm, as the bytes that go over the wire: kind → how one is made, and what may be answered."""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.hostile.pictures import ACCEPTED, REFUSED
from tests.references import pictures

HOST: Final = b"Host: 127.0.0.1\r\n"
BOUNDARY: Final = b"b0undary"
FORM: Final = b"Content-Type: multipart/form-data; boundary=" + BOUNDARY + b"\r\n"
NO_ANSWER: Final = 0  # the server closes without one, or the client does

SOUND: Final = {path.name: path.read_bytes() for path in pictures()}
# Of any file: a picture after all, too large by some limit, no picture, or a broken one.
ANY_PICTURE: Final = frozenset({200, 413, 415, 422})
ANY_FORM: Final = frozenset({200, 400, 413, 415, 422})


@dataclass(frozen=True)
class Attack:
    """One request. data: sent in pieces of `step` bytes, `pause` seconds apart. leave: whether nothing more is to come.

    expected: statuses that its first answer may have.
    """

    data: bytes
    expected: frozenset[int]
    step: int = 1 << 20
    leave: bool = False
    pause: float = 0.0


Maker = Callable[[random.Random], Attack]


def head(method: bytes = b"POST", target: bytes = b"/upload", more: bytes = b"") -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\n" + HOST + more + b"\r\n"


def post(body: bytes, content_type: bytes = b"Content-Type: image/jpeg\r\n", target: bytes = b"/upload") -> bytes:
    return head(target=target, more=content_type + b"Content-Length: %d\r\n" % len(body)) + body


def part(data: bytes, disposition: bytes = b'form-data; name="file"; filename="a.jpg"', more: bytes = b"") -> bytes:
    lines = b"--" + BOUNDARY + b"\r\nContent-Disposition: " + disposition + b"\r\n" + more
    return lines + b"\r\n" + data + b"\r\n"


END: Final = b"--" + BOUNDARY + b"--\r\n"


def some(chance: random.Random, most: int) -> bytes:
    return chance.randbytes(chance.randrange(most))


def mutated(chance: random.Random, data: bytes) -> bytes:
    """A few bytes changed, moved, doubled or cut off."""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 9)):
        at = chance.randrange(len(changed)) if changed else 0
        match chance.randrange(6):
            case 0:
                changed[at : at + 1] = bytes((chance.randrange(256),))
            case 1:
                changed[at : at + 4] = struct.pack(">I", chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000)))
            case 2:
                changed[at:at] = some(chance, 40)
            case 3:
                del changed[at : at + chance.randrange(1, 60)]
            case 4:
                changed[at:at] = changed[at : at + chance.randrange(1, 200)]
            case 5:
                changed[at:] = changed[at : at + chance.randrange(1, 2000)]
    return bytes(changed)


def mutated_picture(chance: random.Random) -> Attack:
    return Attack(post(mutated(chance, chance.choice(list(SOUND.values())))), ANY_PICTURE | {400})


def one_format_in_anothers_clothes(chance: random.Random) -> Attack:
    first, second = (chance.choice(list(SOUND.values())) for _ in range(2))
    cut = chance.randrange(4, 64)
    return Attack(post(first[:cut] + second[cut:]), ANY_PICTURE)


def header_with_noise(chance: random.Random) -> Attack:
    data = chance.choice(list(SOUND.values()))
    return Attack(post(data[: chance.randrange(2, 40)] + some(chance, 3000)), ANY_PICTURE)


def noise(chance: random.Random) -> Attack:
    return Attack(post(some(chance, 5000)), frozenset({400, 415}))


def mutated_form(chance: random.Random) -> Attack:
    form = part(SOUND["rgb.jpg"]) + part(b"text", b'form-data; name="note"') + END
    return Attack(post(mutated(chance, form), FORM), ANY_FORM)


def form_of_many_parts(chance: random.Random) -> Attack:
    name = chance.choice((b"file", b"note"))
    form = part(b"", b'form-data; name="' + name + b'"') * chance.randrange(33, 400)
    return Attack(post(form + END, FORM), frozenset({400, 413}))


def form_of_long_headers(chance: random.Random) -> Attack:
    more = b"X-%d: %s\r\n" % (chance.randrange(99), b"a" * chance.randrange(10_000)) * chance.randrange(1, 20)
    return Attack(post(part(SOUND["rgb.jpg"], more=more) + END, FORM), frozenset({200, 400}))


def form_of_odd_names(chance: random.Random) -> Attack:
    name = chance.choice(
        (b'a"b', b"../../etc/passwd", b"\x00", b"\xff\xfe", b"\r\nX: y", b"<script>", b"%s%n", b"\\", b"a" * 5000)
    )
    disposition = b'form-data; name="file"; filename="' + name + b'"'
    return Attack(post(part(SOUND["rgb.jpg"], disposition) * 2 + END, FORM), ANY_FORM)


def form_without_an_end(chance: random.Random) -> Attack:
    form = part(SOUND["rgb.jpg"]) + END
    return Attack(post(form[: chance.randrange(len(form) - 5)], FORM), frozenset({400}))


def odd_boundary(chance: random.Random) -> Attack:
    boundary = chance.choice(
        (b"", b"boundary=", b'boundary="', b"boundary=" + b"a" * 9000, b"boundary=\xff\x00", b"boundary=b0")
    )
    header = b"Content-Type: multipart/form-data; " + boundary.replace(b"\x00", b"") + b"\r\n"
    return Attack(post(part(SOUND["rgb.jpg"]) + END, header), frozenset({200, 400}))


def odd_content_type(chance: random.Random) -> Attack:
    kind = chance.choice(
        (b"text/html", b"application/json", b"", b"image", b"multipart/mixed; boundary=b", b"*/*", b"\xff")
    )
    return Attack(post(SOUND["rgb.jpg"], b"Content-Type: " + kind + b"\r\n"), frozenset({400, 415}))


def length_that_lies(chance: random.Random) -> Attack:
    length = chance.choice(
        (
            b"99999999999999999999",
            b"-1",
            b"+5",
            b"0x10",
            b"1e3",
            b"5 5",
            b"",
            b"20971521",
            b"4294967296",
            b"9" * 5000,
            b"0" * 5000 + b"5",  # a number to the HTTP parser, and too many digits for `int`
        )
    )
    data = head(more=b"Content-Type: image/jpeg\r\nContent-Length: " + length + b"\r\n") + SOUND["rgb.jpg"]
    return Attack(data, frozenset({400, 411, 413}))


def lengths_that_disagree(chance: random.Random) -> Attack:
    more = chance.choice(
        (
            b"Content-Length: 5\r\nContent-Length: 6\r\n",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked, identity\r\n",
            b"Transfer-Encoding: gzip\r\n",
            b"Transfer-Encoding : chunked\r\n",
            b"Transfer-Encoding: gzip, chunked\r\n",
            b"Transfer-Encoding: chunked, chunked\r\n",
            b"Host: 127.0.0.2\r\n",
            b"",
        )
    )
    return Attack(head(more=b"Content-Type: image/jpeg\r\n" + more) + b"0\r\n\r\n", frozenset({400, 411, 415}))


def odd_chunks(chance: random.Random) -> Attack:
    chunks = chance.choice(
        (b"zz\r\n", b"-1\r\n", b"ffffffffffffffff1\r\n", b"5\r\nabc", b"1;" + b"a" * 70_000, b"\r\n\r\n", b"1\r\na")
    )
    data = head(more=b"Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n") + chunks
    return Attack(data, frozenset({NO_ANSWER, 400, 413, 415, 431}), leave=True)


def more_than_it_may_send(chance: random.Random) -> Attack:
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    more = b"Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n"
    return Attack(head(more=more) + chunk * 22 + b"0\r\n\r\n", frozenset({413}))


def head_too_large(chance: random.Random) -> Attack:
    line = chance.choice(
        (b"X: " + b"a" * 90_000, b"\r\n".join(b"X-%d: y" % key for key in range(9000)), b"Cookie: " + b"a=b; " * 20_000)
    )
    return Attack(head(b"GET", b"/livez", line + b"\r\n"), frozenset({431}))


def target_too_large(chance: random.Random) -> Attack:
    return Attack(head(b"GET", b"/" + b"a" * chance.randrange(17_000, 200_000)), frozenset({414}))


def no_http(chance: random.Random) -> Attack:
    data = chance.choice(
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + some(chance, 500),
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.0\r\n",
            b"GET / HTTP/1.1\r\nHost\r\n\r\n",
            b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA\x00B: c\r\n\r\n",
            b"\x00" * 100,
            b"{" + some(chance, 300),
        )
    )
    return Attack(data, frozenset({NO_ANSWER, 200, 400, 404, 405}), leave=True)


def odd_target(chance: random.Random) -> Attack:
    target = chance.choice(
        (
            b"//",
            b"/../../etc/passwd",
            b"/%00",
            b"/upload/",
            b"/UPLOAD",
            b"/%2e%2e/",
            b"/?a=%ff",
            b"*",
            b"http://x/",
            b"/\xc3\xa9",
            b"/%",
            b"/model/x",
        )
    )
    return Attack(head(b"GET", target), frozenset({200, 400, 404, 405}))


def odd_method(chance: random.Random) -> Attack:
    method = chance.choice(
        (b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"HEAD", b"BREW", b"get", b"G\xff")
    )
    return Attack(head(method, b"/upload"), frozenset({400, 405}))


def odd_query(chance: random.Random) -> Attack:
    query = chance.choice(
        (
            b"0",
            b"-1",
            b"1001",
            b"1e3",
            b"%31%30%30%31",
            b"5&top_k=5",
            b"\xd9\xa1",
            b"",
            b"9" * 5000,
            b"nan",
            b"5;",
            b"%00",
        )
    )
    return Attack(
        post(SOUND["rgb.jpg"], target=b"/upload?top_k=" + query.replace(b"\xd9\xa1", b"%D9%A1")), frozenset({400})
    )


def odd_headers(chance: random.Random) -> Attack:
    more = chance.choice(
        (
            b"X-Request-ID: a\tb\r\n",
            b"X-Request-ID: " + b"a" * 9000 + b"\r\n",
            b'X-Request-ID: {"level":"error"}\r\n',
            b"X-Request-Timeout-Ms: -5\r\n",
            b"X-Request-Timeout-Ms: 99999999999999999999\r\n",
            b"X-Request-Timeout-Ms: 1\r\n",
            b"Origin: http://evil.example\r\n",
            b"Origin: null\r\n",
            b"Expect: 200-maybe\r\n",
            b"Range: bytes=0-1\r\n",
            b"Accept: \xff\r\n",
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
            b"Content-Encoding: gzip\r\n",
        )
    )
    return Attack(post(SOUND["rgb.jpg"], b"Content-Type: image/jpeg\r\n" + more), frozenset({200, 400, 403, 504}))


def empty(chance: random.Random) -> Attack:
    if chance.random() < 0.5:
        return Attack(post(b""), frozenset({400}))
    return Attack(post(part(b"", b'form-data; name="file"; filename=""') + END, FORM), frozenset({400}))


def leaves_in_the_middle(chance: random.Random) -> Attack:
    data = post(SOUND["rgb.png"] * 30)
    return Attack(data[: chance.randrange(1, len(data))], frozenset({NO_ANSWER, 415}), leave=True)


def leaves_before_its_answer(chance: random.Random) -> Attack:
    return Attack(post(chance.choice(list(SOUND.values()))), ANY_PICTURE, leave=True)


def many_at_once(chance: random.Random) -> Attack:
    """Pipelined: the first answer is looked at, the others have to follow or the connection to end."""
    return Attack(head(b"GET", b"/livez") * chance.randrange(2, 300), frozenset({200}))


def smuggled(chance: random.Random) -> Attack:
    inner = head(b"GET", b"/model")
    return Attack(post(inner + SOUND["rgb.jpg"]), frozenset({400, 415}))


def crumbs(chance: random.Random) -> Attack:
    return Attack(post(part(SOUND["rgb.jpg"]) + END, FORM), frozenset({200}), step=chance.randrange(1, 60))


# How often each kind comes, in thousandths of a run.
KINDS: Final[dict[Maker, int]] = {
    mutated_picture: 220,
    one_format_in_anothers_clothes: 60,
    header_with_noise: 80,
    noise: 40,
    mutated_form: 110,
    form_of_many_parts: 20,
    form_of_long_headers: 20,
    form_of_odd_names: 20,
    form_without_an_end: 25,
    odd_boundary: 20,
    odd_content_type: 25,
    length_that_lies: 30,
    lengths_that_disagree: 30,
    odd_chunks: 30,
    head_too_large: 15,
    target_too_large: 5,
    no_http: 45,
    odd_target: 40,
    odd_method: 30,
    odd_query: 35,
    odd_headers: 35,
    empty: 20,
    leaves_in_the_middle: 20,
    leaves_before_its_answer: 10,
    many_at_once: 5,
    smuggled: 10,
}


@cache
def bomb(name: str) -> Attack:
    """A picture of `tests.hostile.pictures`, sent as it is."""
    if name in ACCEPTED:
        return Attack(post(ACCEPTED[name]()), frozenset({200}))
    make, status = REFUSED[name]
    return Attack(post(make()), frozenset({status}))


def is_honest(status: int, content_type: str, body: bytes) -> bool:
    """Whether an answer is one of the contract: a problem says its own status, and nothing of the server's insides."""
    if status < 400:
        return True
    text = body.decode()
    inside = ("Traceback", "site-packages", ".py", "PIL", "0x7f", "/usr/", "/app/", "Error(")
    if any(word in text for word in inside):
        return False
    told = json.loads(body)
    if content_type == "application/json":  # the Open Inference Protocol's own
        return list(told) == ["error"] and isinstance(told["error"], str)
    return content_type.startswith("application/problem+json") and bool(told["status"] == status)
