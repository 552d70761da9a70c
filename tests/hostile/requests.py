"""Hostile requests as bytes on the wire, with the answers that each kind may get."""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from serve.problems import REASONS, RULES
from tests.hostile.pictures import ACCEPTED, BOUNDED, REFUSED
from tests.references import pictures

HOST: Final = b"Host: 127.0.0.1\r\n"
BOUNDARY: Final = b"b0undary"
FORM: Final = b"Content-Type: multipart/form-data; boundary=" + BOUNDARY + b"\r\n"
NO_ANSWER: Final = 0  # the server or the client closed the connection

VALID_IMAGES: Final = {path.name: path.read_bytes() for path in pictures()}
# Possible answers to any file: classified, over a limit, not an image, or a broken image.
ANY_IMAGE: Final = frozenset({200, 413, 415, 422})
ANY_FORM: Final = frozenset({200, 400, 413, 415, 422})


@dataclass(frozen=True)
class Attack:
    """One request.

    Attributes:
        data: Sent in pieces of `step` bytes, `pause` seconds apart.
        expected: Statuses that its first answer may have.
        leave: Whether the client closes its side after sending.
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


def random_bytes(rng: random.Random, limit: int) -> bytes:
    return rng.randbytes(rng.randrange(limit))


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The data with a few bytes changed, inserted, deleted, duplicated or cut off."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                changed[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000)))
            case 2:
                changed[at:at] = random_bytes(rng, 40)
            case 3:
                del changed[at : at + rng.randrange(1, 60)]
            case 4:
                changed[at:at] = changed[at : at + rng.randrange(1, 200)]
            case 5:
                changed[at:] = changed[at : at + rng.randrange(1, 2000)]
    return bytes(changed)


def mutated_image(rng: random.Random) -> Attack:
    return Attack(post(mutated(rng, rng.choice(list(VALID_IMAGES.values())))), ANY_IMAGE | {400})


def spliced_formats(rng: random.Random) -> Attack:
    first, second = (rng.choice(list(VALID_IMAGES.values())) for _ in range(2))
    cut = rng.randrange(4, 64)
    return Attack(post(first[:cut] + second[cut:]), ANY_IMAGE)


def header_with_noise(rng: random.Random) -> Attack:
    data = rng.choice(list(VALID_IMAGES.values()))
    return Attack(post(data[: rng.randrange(2, 40)] + random_bytes(rng, 3000)), ANY_IMAGE)


def noise(rng: random.Random) -> Attack:
    return Attack(post(random_bytes(rng, 5000)), frozenset({400, 415}))


def mutated_form(rng: random.Random) -> Attack:
    form = part(VALID_IMAGES["rgb.jpg"]) + part(b"text", b'form-data; name="note"') + END
    return Attack(post(mutated(rng, form), FORM), ANY_FORM)


def form_of_many_parts(rng: random.Random) -> Attack:
    disposition = rng.choice((b'name="file"; filename="a"', b'name="x"; filename=""', b'name="file"', b'name="note"'))
    form = part(b"", b"form-data; " + disposition) * rng.randrange(33, 400)
    return Attack(post(form + END, FORM), frozenset({400, 413}))


def form_of_long_headers(rng: random.Random) -> Attack:
    more = b"X-%d: %s\r\n" % (rng.randrange(99), b"a" * rng.randrange(10_000)) * rng.randrange(1, 20)
    return Attack(post(part(VALID_IMAGES["rgb.jpg"], more=more) + END, FORM), frozenset({200, 400}))


ODD_NAMES: Final = (
    *(b'a"b', b"../../etc/passwd", b"\x00", b"\xff\xfe", b"\r\nX: y", b"<script>", b"%s%n", b"\\", b"a" * 5000),
    *(b"=?utf-8?b?" + b"w6k" * 900 + b"?=", b"=?koi8-r?q?a?=", b"%C3%A9" * 600, b"\r\n \r\n\tb", b"%ff%00"),
)


def form_of_odd_names(rng: random.Random) -> Attack:
    name = rng.choice(ODD_NAMES)
    extended = rng.choice((b"*", b"*0", b"*0*", b"*" + b"9" * 900, b"*1*=%41; filename*", b"")) + b"="
    extended += rng.choice((b"utf-8''%c3%a9", b"utf-8''%ff", b"undefined''%41", b"hex''41", b"'", b"utf-8'" * 600, b""))
    disposition = b'form-data; name="file"; filename="' + name + b'"; filename' + extended
    return Attack(post(part(VALID_IMAGES["rgb.jpg"], disposition) * 2 + END, FORM), ANY_FORM)


def unterminated_form(rng: random.Random) -> Attack:
    form = part(VALID_IMAGES["rgb.jpg"]) + END
    return Attack(post(form[: rng.randrange(len(form) - 5)], FORM), frozenset({400}))


def odd_boundary(rng: random.Random) -> Attack:
    boundary = rng.choice(
        (b"", b"boundary=", b'boundary="', b"boundary=" + b"a" * 9000, b"boundary=\xff\x00", b"boundary=b0")
    )
    header = b"Content-Type: multipart/form-data; " + boundary.replace(b"\x00", b"") + b"\r\n"
    return Attack(post(part(VALID_IMAGES["rgb.jpg"]) + END, header), frozenset({200, 400}))


def odd_content_type(rng: random.Random) -> Attack:
    kind = rng.choice(
        (b"text/html", b"application/json", b"", b"image", b"multipart/mixed; boundary=b", b"*/*", b"\xff")
    )
    return Attack(post(VALID_IMAGES["rgb.jpg"], b"Content-Type: " + kind + b"\r\n"), frozenset({200, 400, 415}))


def wrong_content_length(rng: random.Random) -> Attack:
    length = rng.choice(
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
            b"0" * 5000 + b"5",  # valid for the HTTP parser, too many digits for `int`
        )
    )
    data = head(more=b"Content-Type: image/jpeg\r\nContent-Length: " + length + b"\r\n") + VALID_IMAGES["rgb.jpg"]
    return Attack(data, frozenset({400, 411, 413}))


def conflicting_lengths(rng: random.Random) -> Attack:
    more = rng.choice(
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


def odd_chunks(rng: random.Random) -> Attack:
    chunks = rng.choice(
        (b"zz\r\n", b"-1\r\n", b"ffffffffffffffff1\r\n", b"5\r\nabc", b"1;" + b"a" * 70_000, b"\r\n\r\n", b"1\r\na")
    )
    data = head(more=b"Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n") + chunks
    return Attack(data, frozenset({NO_ANSWER, 400, 413, 415, 431}), leave=True)


def oversized_chunked_body(rng: random.Random) -> Attack:
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    more = b"Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n"
    return Attack(head(more=more) + chunk * 22 + b"0\r\n\r\n", frozenset({413}))


def head_too_large(rng: random.Random) -> Attack:
    line = rng.choice(
        (b"X: " + b"a" * 90_000, b"\r\n".join(b"X-%d: y" % key for key in range(9000)), b"Cookie: " + b"a=b; " * 20_000)
    )
    return Attack(head(b"GET", b"/livez", line + b"\r\n"), frozenset({431}))


def target_too_large(rng: random.Random) -> Attack:
    return Attack(head(b"GET", b"/" + b"a" * rng.randrange(17_000, 200_000)), frozenset({414}))


def not_http(rng: random.Random) -> Attack:
    data = rng.choice(
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random_bytes(rng, 500),
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.0\r\n",
            b"GET / HTTP/1.1\r\nHost\r\n\r\n",
            b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA\x00B: c\r\n\r\n",
            b"\x00" * 100,
            b"{" + random_bytes(rng, 300),
        )
    )
    return Attack(data, frozenset({NO_ANSWER, 200, 400, 404, 405}), leave=True)


def odd_target(rng: random.Random) -> Attack:
    target = rng.choice(
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


def odd_method(rng: random.Random) -> Attack:
    method = rng.choice(
        (b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"HEAD", b"BREW", b"get", b"G\xff")
    )
    return Attack(head(method, b"/upload"), frozenset({400, 405}))


def odd_query(rng: random.Random) -> Attack:
    query = rng.choice(
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
        post(VALID_IMAGES["rgb.jpg"], target=b"/upload?top_k=" + query.replace(b"\xd9\xa1", b"%D9%A1")),
        frozenset({400}),
    )


def odd_headers(rng: random.Random) -> Attack:
    more = rng.choice(
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
    return Attack(
        post(VALID_IMAGES["rgb.jpg"], b"Content-Type: image/jpeg\r\n" + more), frozenset({200, 400, 403, 415, 504})
    )


def empty_body(rng: random.Random) -> Attack:
    if rng.random() < 0.5:
        return Attack(post(b""), frozenset({400}))
    return Attack(post(part(b"", b'form-data; name="file"; filename=""') + END, FORM), frozenset({400}))


def disconnect_midway(rng: random.Random) -> Attack:
    data = post(VALID_IMAGES["rgb.png"] * 30)
    return Attack(data[: rng.randrange(1, len(data))], frozenset({NO_ANSWER, 415}), leave=True)


def half_close_before_answer(rng: random.Random) -> Attack:
    return Attack(post(rng.choice(list(VALID_IMAGES.values()))), ANY_IMAGE, leave=True)


def pipelined_requests(rng: random.Random) -> Attack:
    """Pipelined requests; only the first answer is checked."""
    return Attack(head(b"GET", b"/livez") * rng.randrange(2, 300), frozenset({200}))


def smuggled_request(rng: random.Random) -> Attack:
    inner = head(b"GET", b"/model")
    return Attack(post(inner + VALID_IMAGES["rgb.jpg"]), frozenset({400, 415}))


def tiny_writes(rng: random.Random) -> Attack:
    return Attack(post(part(VALID_IMAGES["rgb.jpg"]) + END, FORM), frozenset({200}), step=rng.randrange(1, 60))


# Weights of the kinds; they add up to about 1,000.
KINDS: Final[dict[Maker, int]] = {
    mutated_image: 220,
    spliced_formats: 60,
    header_with_noise: 80,
    noise: 40,
    mutated_form: 110,
    form_of_many_parts: 20,
    form_of_long_headers: 20,
    form_of_odd_names: 20,
    unterminated_form: 25,
    odd_boundary: 20,
    odd_content_type: 25,
    wrong_content_length: 30,
    conflicting_lengths: 30,
    odd_chunks: 30,
    head_too_large: 15,
    target_too_large: 5,
    not_http: 45,
    odd_target: 40,
    odd_method: 30,
    odd_query: 35,
    odd_headers: 35,
    empty_body: 20,
    disconnect_midway: 20,
    half_close_before_answer: 10,
    pipelined_requests: 5,
    smuggled_request: 10,
}


_STATUSES: Final = {reason: RULES[error].status for error, reason in REASONS.items()}


@cache
def bomb(name: str) -> Attack:
    """A request with an image of `tests.hostile.pictures`."""
    if name in ACCEPTED:
        return Attack(post(ACCEPTED[name]()), frozenset({200}))
    if name in BOUNDED:
        return Attack(post(BOUNDED[name]()), frozenset({200, 413, 422}))
    make, status = REFUSED[name]
    return Attack(post(make()), frozenset({status}))


def matches_contract(status: int, content_type: str, body: bytes) -> bool:
    """Whether an answer follows the contract: a problem has the right status and reveals no internals."""
    if status < 400:
        return True
    text = body.decode()
    inside = ("Traceback", "site-packages", ".py", "PIL", "0x7f", "/usr/", "/app/", "Error(")
    if any(word in text for word in inside):
        return False
    problem = json.loads(body)
    if content_type == "application/json":  # errors of the Open Inference Protocol
        return list(problem) == ["error"] and isinstance(problem["error"], str)
    known = problem["status"] == status == _STATUSES.get(problem.get("reason"))
    return content_type.startswith("application/problem+json") and known
