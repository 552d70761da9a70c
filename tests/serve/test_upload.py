"""Tests reading a request's body: its limits and its media types."""

from collections.abc import Iterator

import pytest

from serve.api.form import UploadedFile
from serve.api.upload import UploadLimits
from serve.errors import EmptyFile, UnboundedBody, UnsupportedBody, UploadTooLarge
from tests.exchange import body_of, upload_of

LIMITS = UploadLimits(max_bytes=100, max_files=2)


class Chunks:
    """A body in chunks that counts how many were read."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.read = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk


def upload(body: Chunks, content_type: str = "image/png", **headers: str) -> list[UploadedFile]:
    named = {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return upload_of(named, body, LIMITS)


def test_a_body_in_pieces_is_put_together() -> None:
    assert upload(Chunks(b"ab", b"", b"c"), transfer_encoding="chunked") == [UploadedFile("", b"abc")]


@pytest.mark.parametrize("sizes", [(1, 2), (65_536, 1), (65_537, 1, 2), (40_000, 40_000, 40_000, 3), (200_000,)])
def test_a_large_body_in_pieces_is_put_together(sizes: tuple[int, ...]) -> None:
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    limits = UploadLimits(max_bytes=sum(sizes), max_files=1)
    headers = {"content-type": "image/png", "transfer-encoding": "chunked"}
    assert upload_of(headers, Chunks(*pieces), limits) == [UploadedFile("", b"".join(pieces))]


@pytest.mark.parametrize("headers", [{"content_length": "100"}, {"transfer_encoding": "chunked"}])
def test_all_pieces_together_may_be_just_as_large_as_the_limit(headers: dict[str, str]) -> None:
    assert len(upload(Chunks(b"a" * 40, b"b" * 60), **headers)[0].data) == 100
    body = Chunks(b"a" * 40, b"b" * 60, b"c", b"never asked for")
    with pytest.raises(UploadTooLarge, match="larger than the limit of 100 bytes per request"):
        upload(body, **headers)
    assert body.read == 3


def test_a_claimed_length_over_the_limit_is_refused_unread() -> None:
    body = Chunks(b"a")
    with pytest.raises(UploadTooLarge, match="larger than the limit of 100 bytes"):
        upload(body, content_length="101")
    assert body.read == 0


def test_a_length_may_have_twenty_digits() -> None:
    assert upload(Chunks(b"a"), content_length="1".zfill(20)) == [UploadedFile("", b"a")]
    with pytest.raises(UploadTooLarge, match="has 21 digits; the limit is 20 digits"):
        upload(Chunks(b"a"), content_length="1".zfill(21))


def test_a_body_without_bound_or_bytes_is_refused() -> None:
    with pytest.raises(UnboundedBody):
        upload(Chunks(b"a"))
    with pytest.raises(EmptyFile):
        upload(Chunks(), content_length="0")
    assert body_of({"content-length": "0"}, Chunks(), 1) == b""


@pytest.mark.parametrize(
    ("content_type", "words"),
    [("", "no Content-Type"), ("text/" + "x" * 35 + "y", "'text/" + "x" * 35 + "' is neither"), ("image", "'image'")],
)
def test_other_content_types_are_named_and_cut(content_type: str, words: str) -> None:
    with pytest.raises(UnsupportedBody, match=words):
        upload(Chunks(b"a"), content_type, content_length="1")


@pytest.mark.parametrize(
    "content_type", ["IMAGE/PNG", " image/x ;a=b", "application/octet-stream", "Application/Octet-Stream"]
)
def test_a_content_type_is_read_in_any_case_and_without_its_parameters(content_type: str) -> None:
    assert upload(Chunks(b"a"), content_type, content_length="1") == [UploadedFile("", b"a")]


def test_a_form_is_read_as_it_comes() -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    body = Chunks(head[:20], head[20:] + b"da", b"ta\r\n--b--\r\n")
    found = upload(body, "Multipart/Form-Data; boundary=b", transfer_encoding="chunked")
    assert found == [UploadedFile("a.png", b"data")]
