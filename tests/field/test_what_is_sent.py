"""Tests bodies, forms and queries as clients in the field send them: the right answer, or the true reason.

The headers of parts are what curl, browsers, requests, urllib3, httpx, aiohttp, Node, Go, Java, PHP and .NET write.
"""

import base64
import gzip
import io
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, quote_plus

import httpx2
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.api.upload import UploadLimits
from serve.config.settings import ROOT
from serve.errors import UnsupportedBody
from tests.exchange import upload_of
from tests.hostile.requests import VALID_IMAGES

FORM = {"Content-Type": "multipart/form-data; boundary=b"}
END = b"--b--\r\n"
CAT = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
GZIPPED = gzip.compress(CAT)


def part(disposition: str, data: bytes = CAT, more: str = "") -> bytes:
    head = f"--b\r\nContent-Disposition: form-data; {disposition}\r\n{more}\r\n"
    return head.encode() + data + b"\r\n"


def send(client: TestClient, body: bytes, query: str = "", **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"/upload{query}", content=body, headers=named or FORM)


def answer_to(client: TestClient, body: bytes, query: str = "", **headers: str) -> Any:
    answer = send(client, body, query, **headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def detail_of(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    detail: str = answer.json()["detail"]
    return detail


@pytest.fixture
def right(client: TestClient) -> dict[str, Any]:
    """The prediction for the cat."""
    prediction: dict[str, Any] = client.post("/upload", content=CAT, headers={"Content-Type": "image/jpeg"}).json()
    return prediction


def names_in_list(client: TestClient, *dispositions: str) -> list[str]:
    body = b"".join(part(each) for each in dispositions)
    return [result["filename"] for result in answer_to(client, body + END, "?list=true")["results"]]


# Bodies and their Content-Type


@pytest.mark.parametrize(
    "content_type",
    [
        None,  # fetch(url, {body: buffer}), requests data=, httpx content=, Java's and .NET's HttpClient
        "",
        "application/x-www-form-urlencoded",  # curl --data-binary, wget --post-file, urllib, HttpURLConnection, PHP
        "application/x-www-form-urlencoded; charset=UTF-8",
        "Application/X-WWW-Form-URLEncoded",
        "binary/octet-stream",  # S3
        "application/unknown",
        "application/binary",
        "application/x-binary",
        "content/unknown",
        "unknown/unknown",
        "*/*",
        "image",
        "undefined",
        '"image/jpeg"',
        "application/octet-stream",
        "image/jpg",
        "image/*",
    ],
)
def test_a_body_that_begins_like_an_image_needs_no_usable_content_type(
    client: TestClient, content_type: str | None, right: dict[str, Any]
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert client.post("/upload", content=CAT, headers=headers).json() == right
    chunks = (CAT[at : at + 7] for at in range(0, len(CAT), 7))
    assert client.post("/upload", content=chunks, headers=headers).json() == right


@pytest.mark.parametrize("name", ["rgb.png", "rgb.webp", "rgb.bmp", "rgb.tiff", "rgb.avif", "palette.gif"])
def test_every_format_is_recognised_without_content_type(client: TestClient, name: str) -> None:
    assert client.post("/upload", content=VALID_IMAGES[name]).status_code == 200


@pytest.mark.parametrize("body", [b"", b"x", b"file=%FF%D8%FF", b"y" * 63, b"y" * 64, b"y" * 100_000])
@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "binary/octet-stream"])
def test_another_body_without_usable_content_type_is_told_how_to_send_an_image(
    client: TestClient, content_type: str | None, body: bytes
) -> None:
    detail = detail_of(client.post("/upload", content=body, headers={"Content-Type": content_type or ""}), 415)
    assert (content_type or "no Content-Type") in detail
    assert "curl -F 'file=@cat.jpg'" in detail


@pytest.mark.parametrize("content_type", ["text/html", "application/json", "multipart/mixed; boundary=b", "video/mp4"])
def test_a_content_type_that_says_something_else_is_believed(client: TestClient, content_type: str) -> None:
    assert content_type.split(";")[0] in detail_of(send(client, CAT, Content_Type=content_type), 415)


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "image/jpeg"])
def test_a_form_with_another_content_type_is_told_so(client: TestClient, content_type: str | None) -> None:
    """What fetch and axios send for a FormData beside a Content-Type of the caller's own."""
    form = part('name="file"; filename="cat.jpg"') + END
    answer = client.post("/upload", content=form, headers={"Content-Type": content_type or ""})
    assert "is a multipart form; let the client set its Content-Type." in detail_of(answer, 415)


@pytest.mark.parametrize(
    "coding", ["gzip", "GZIP", "x-gzip", "br", "deflate", "zstd", "identity, gzip", "gzip,identity"]
)
@pytest.mark.parametrize("path", ["/upload", "/v2/models/tiny/infer"])
@pytest.mark.parametrize("content_type", ["image/jpeg", FORM["Content-Type"], "application/json", None])
def test_a_compressed_body_is_told_so(client: TestClient, coding: str, path: str, content_type: str | None) -> None:
    headers = {"Content-Encoding": coding, **({"Content-Type": content_type} if content_type else {})}
    answer = client.post(path, content=GZIPPED, headers=headers)
    assert answer.status_code == 415
    told = answer.json().get("detail") or answer.json()["error"]
    if path == "/upload" and content_type == "application/json":  # another reason comes first
        assert "The body is a file compressed with gzip; send it uncompressed." in told
        return
    assert f"The body has Content-Encoding: {coding}, which is not supported; send the bytes as they are" in told


def test_a_second_content_encoding_counts_too(client: TestClient) -> None:
    headers = [("Content-Type", "image/jpeg"), ("Content-Encoding", "identity"), ("Content-Encoding", "gzip")]
    told = detail_of(client.post("/upload", content=GZIPPED, headers=headers), 415)
    assert "Content-Encoding: identity,gzip, which is not supported" in told


@pytest.mark.parametrize("coding", ["identity", "Identity", "", " identity , identity", ",", "identity,"])
def test_a_body_in_no_coding_may_say_so(client: TestClient, coding: str, right: dict[str, Any]) -> None:
    assert answer_to(client, CAT, Content_Type="image/jpeg", Content_Encoding=coding) == right


def test_a_compressed_file_is_told_so_without_any_header(client: TestClient) -> None:
    for answer in (
        send(client, GZIPPED, Content_Type="image/jpeg"),
        send(client, GZIPPED, Content_Type="application/x-www-form-urlencoded"),
        send(client, part('name="file"; filename="cat.jpg.gz"', GZIPPED) + END),
    ):
        assert "a file compressed with gzip" in detail_of(answer, 415)


# Parts


@pytest.mark.parametrize("name", ["file", "files", "image", "file[]", "files[0]", "upload", "", "FILE", "übung"])
def test_a_part_with_a_filename_is_a_file_whatever_its_name(
    client: TestClient, name: str, right: dict[str, Any]
) -> None:
    assert answer_to(client, part(f'name="{name}"; filename="cat.jpg"') + END) == right
    assert answer_to(client, part(f"name={name or 'x'}; filename*=UTF-8''cat.jpg") + END) == right
    assert answer_to(client, part('filename="cat.jpg"') + END) == right


def test_a_part_named_file_needs_no_filename_and_others_do(client: TestClient, right: dict[str, Any]) -> None:
    assert answer_to(client, part('name="file"') + END) == right
    assert answer_to(client, part("name=file") + part('name="image"') + END) == right
    detail = detail_of(send(client, part('name="image"') + part('name="note"', b"x") + END), 400)
    assert "no file: no part has a filename, and none named 'file' has content" in detail
    assert "'image', 'note'" in detail


def test_files_of_several_names_are_listed_in_the_order_sent(client: TestClient) -> None:
    dispositions = [f'name="{name}"; filename="{name}.jpg"' for name in ("image", "file", "file[]")]
    assert names_in_list(client, *dispositions) == ["image.jpg", "file.jpg", "file[].jpg"]


UNFILLED = [
    part('name="file"; filename=""', b"", "Content-Type: application/octet-stream\r\n"),  # browsers
    part('name="second"; filename=""', b""),
    part('name="file"', b""),  # form.append("file", "")
]


@pytest.mark.parametrize("unfilled", UNFILLED)
@pytest.mark.parametrize("max_files", [1, 32])
def test_an_unfilled_file_input_is_no_file(
    client_for: Any, unfilled: bytes, max_files: int, right: dict[str, Any]
) -> None:
    client = client_for(max_files=max_files)
    filled = part('name="file"; filename="cat.jpg"')
    for body in (filled + unfilled, unfilled + filled, unfilled + filled + unfilled * 31):
        assert answer_to(client, body + END) == right
    assert "(left empty)" in detail_of(send(client, unfilled + END), 400)
    assert detail_of(send(client, filled + unfilled * 33 + END), 413)


def test_an_empty_file_with_a_name_is_still_told_that_it_is_empty(client: TestClient) -> None:
    assert "The file is empty" in detail_of(send(client, part('name="file"; filename="cat.jpg"', b"") + END), 400)


def test_a_file_without_name_but_with_bytes_is_one_of_the_files(client_for: Any) -> None:
    body = part('name="file"; filename=""') * 2 + END
    assert [each["filename"] for each in answer_to(client_for(), body)["results"]] == ["", ""]
    assert "more files than the limit of 1" in detail_of(send(client_for(max_files=1), body), 413)


# File names


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        # RFC 8187
        ("filename*=utf-8''caf%C3%A9.jpg", "café.jpg"),  # urllib3 1, alone
        ("filename*=UTF-8''caf%c3%a9.jpg; filename=\"cafe.jpg\"", "café.jpg"),
        ("filename=\"cafe.jpg\"; filename*=UTF-8''caf%C3%A9.jpg", "café.jpg"),
        ("filename*=ISO-8859-1''caf%E9.jpg", "café.jpg"),
        ("FileName*=iso-8859-1'fr'caf%E9.jpg", "café.jpg"),
        ("filename*=UTF-8'de'%C3%BCber%20uns.jpg", "über uns.jpg"),
        ("filename*=utf-8''it%27s%3B%20a%20%22cat%22.jpg", "it's; a \"cat\".jpg"),
        ("filename*=utf-8''100%25.jpg", "100%.jpg"),
        ("filename*=\"utf-8''caf%C3%A9.jpg\"", "café.jpg"),  # quoted, which it should not be
        ("filename* = utf-8''caf%C3%A9.jpg", "café.jpg"),
        # one that cannot be decoded gives way
        ("filename*=utf-8''caf%E9.jpg; filename=\"cafe.jpg\"", "cafe.jpg"),
        ("filename*=klingon''caf%E9.jpg; filename=\"cafe.jpg\"", "cafe.jpg"),
        ("filename*=caf%C3%A9.jpg", "café.jpg"),
        ("filename*=klingon''caf%E9.jpg", "café.jpg"),
        # RFC 2231
        ('filename*0="a long "; filename*1="name.jpg"', "a long name.jpg"),
        ("filename*0*=utf-8''caf%C3; filename*1*=%A9; filename*2=\".jpg\"", "café.jpg"),
        ("filename*1*=%E9; filename*2=\" 1%20.jpg\"; filename*0*=iso-8859-1'fr'caf", "café 1%20.jpg"),
        ("filename=\"x.jpg\"; filename*0=\"y\"; filename*1=\".jpg\"", "y.jpg"),
        ("; ".join(f'filename*{number}="{number}"' for number in range(12)), "01234567891011"),
        ("filename*0*=utf-8''no; filename*=utf-8''yes.jpg; filename*1*=no", "yes.jpg"),
        # RFC 2047
        ("filename=\"=?utf-8?B?Y2Fmw6kuanBn?=\"; filename*=utf-8''caf%C3%A9.jpg", "café.jpg"),  # .NET
        ('filename="=?utf-8?B?Y2Fmw6kuanBn?="', "café.jpg"),
        ('filename="=?ISO-8859-1?Q?caf=E9_1.jpg?="', "café 1.jpg"),
        ('filename="=?utf-8?Q?caf=C3?= =?utf-8?Q?=A9.jpg?="', "café.jpg"),
        ('filename="=?klingon?Q?caf?="', "=?klingon?Q?caf?="),
        ('filename="=?utf-8?Q?caf?= =?klingon?Q?e?="', "=?utf-8?Q?caf?= =?klingon?Q?e?="),
        ('filename="=?utf-8?B?!?="', "=?utf-8?B?!?="),
        ('filename="what=?no?.jpg"', "what=?no?.jpg"),
        # quoted pairs
        (r'filename="a \"cat\".jpg"', 'a "cat".jpg'),
        (r'filename="a\\b.jpg"', r"a\b.jpg"),
        (r'filename="ends\\"; x="y"', "ends\\"),
        (r'filename="C:\Users\me\cat.jpg"', "cat.jpg"),
        (r'filename="\\\\server\\share\\cat.jpg"', "cat.jpg"),
        ('filename="a;b=c, d.jpg"', "a;b=c, d.jpg"),
        ("filename=cat.jpg", "cat.jpg"),
        ("filename=my cat.jpg ", "my cat.jpg"),
        # percent-encoding by browsers and by RFC 7578
        ("filename=\"a %22cat%22.jpg\"", 'a "cat".jpg'),
        ('filename="two%0D%0Alines.jpg"', "two\r\nlines.jpg"),
        ('filename="caf%C3%A9 (1).jpg"', "café (1).jpg"),
        ('filename="caf%C3%A9%20%281%29.jpg"', "café (1).jpg"),  # aiohttp
        ('filename="pct%20x.jpg"', "pct%20x.jpg"),  # the file's own name, from curl
        ('filename="%41%2Fb%25.jpg"', "%41%2Fb%25.jpg"),
        ('filename="50%20 (1).jpg"', "50%20 (1).jpg"),
        ('filename="100%.jpg"', "100%.jpg"),
        ('filename="%E9.jpg"', "%E9.jpg"),
        # bytes beyond ASCII
        ('filename="café 猫.jpg"', "café 猫.jpg"),
    ],
)  # fmt: skip
def test_file_names_in_lists_are_those_that_the_client_means(client: TestClient, parameters: str, name: str) -> None:
    assert names_in_list(client, f'name="file"; {parameters}', f"{parameters}; name=files") == [name, name]


def test_a_name_in_latin_1_is_read_as_such(client: TestClient) -> None:
    body = part('name="file"; filename="caf?.jpg"').replace(b"caf?", b"caf\xe9")
    assert answer_to(client, body + END, "?list=true")["results"][0]["filename"] == "café.jpg"


def test_a_very_long_name_is_left_as_it_was_sent(client: TestClient) -> None:
    longest = "%C3%A9" * 170 + ".jpg"
    assert len(longest) == 1024
    given = [f'name="file"; filename="{name}"' for name in (longest, f"{longest}x")]
    assert names_in_list(client, *given) == ["é" * 170 + ".jpg", f"{longest}x"]


# The form's syntax, as RFC 2046 has it


@pytest.mark.parametrize(
    "preamble", ["\r\n", "This is a multi-part message.\r\n", "--\r\n--c\r\n", "x" * 200_000 + "\r\n"]
)
def test_a_preamble_and_an_epilogue_are_skipped(client: TestClient, preamble: str, right: dict[str, Any]) -> None:
    body = preamble.encode() + part('name="file"; filename="a"') + END + b"an epilogue\r\n--b\r\n"
    assert answer_to(client, body) == right


@pytest.mark.parametrize("blanks", [b" ", b"\t", b" \t  "])
def test_blanks_may_follow_a_boundary(client: TestClient, blanks: bytes, right: dict[str, Any]) -> None:
    body = part('name="file"; filename="a"').replace(b"--b\r\n", b"--b" + blanks + b"\r\n")
    assert answer_to(client, body + b"--b--" + blanks + b"\r\n") == right


@pytest.mark.parametrize("fold", ["\r\n ", "\r\n\t", "\r\n   \t", " \r\n "])
def test_folded_headers_of_a_part_are_unfolded(client: TestClient, fold: str) -> None:
    long = f'name="file";{fold}filename="a.jpg";{fold}x="y"'
    assert names_in_list(client, long) == ["a.jpg"]
    first = (
        b"--b\r\nContent-Type: image/jpeg;\r\n name=cat\r\ncontent-disposition:\r\n form-data; filename=b.jpg\r\n\r\n"
    )
    assert answer_to(client, first + CAT + b"\r\n" + END, "?list=true")["results"][0]["filename"] == "b.jpg"


def test_a_fold_before_the_first_header_is_malformed(client: TestClient) -> None:
    body = b'--b\r\n X: y\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n' + END
    assert "malformed" in detail_of(send(client, body), 400)


def test_a_folded_header_has_the_limit_of_any_other(client: TestClient) -> None:
    def of(count: int) -> httpx2.Response:
        return send(client, part('name="file"; filename="a"' + "\r\n " * count) + END)

    length = len('Content-Disposition: form-data; name="file"; filename="a"')
    assert of((4224 - length) // 3).status_code == 200
    assert "longer than the limit of 4224 bytes" in detail_of(of((4224 - length) // 3 + 1), 400)


@pytest.mark.parametrize("encoding", ["base64", "Base64", "quoted-printable", "QUOTED-PRINTABLE", "x-uuencode", "gzip"])
def test_a_part_in_a_transfer_encoding_is_told_so(client: TestClient, encoding: str) -> None:
    data = base64.encodebytes(CAT)
    for fold in ("", "\r\n "):
        body = part('name="image"; filename="a.jpg"', data, f"Content-Transfer-Encoding:{fold} {encoding}\r\n")
        detail = detail_of(send(client, body + END), 415)
        assert f"The part 'image' has Content-Transfer-Encoding: {encoding}, which is not supported" in detail


@pytest.mark.parametrize("encoding", ["7bit", "8bit", "binary", "BINARY", "8Bit "])
def test_a_part_whose_bytes_are_as_they_are_may_say_so(
    client: TestClient, encoding: str, right: dict[str, Any]
) -> None:
    more = f"content-transfer-encoding: {encoding}\r\n"
    assert answer_to(client, part('name="file"; filename="a.jpg"', CAT, more) + END) == right


def test_a_compressed_part_is_told_so_and_other_fields_may_be_encoded(
    client: TestClient, right: dict[str, Any]
) -> None:
    body = part('name="file"; filename="a.jpg"', GZIPPED, "Content-Encoding: gzip\r\n")
    assert "The part 'file' has Content-Encoding: gzip" in detail_of(send(client, body + END), 415)
    note = part('name="note"', b"bm90ZQ==", "Content-Transfer-Encoding: base64\r\n")
    assert answer_to(client, note + part('name="file"; filename="a.jpg"') + END) == right


# What stands in place of a file

BASE64 = base64.b64encode(CAT)
NO_FILE = [
    (b"data:image/jpeg;base64," + BASE64, "a data URI"),
    (b"DATA:image/svg+xml;charset=utf-8,%3Csvg%3E", "a data URI"),
    (b'"data:image/png;base64,iVBORw0KGgo="', "a data URI"),
    (b"image/png;base64,iVBORw0KGgo=", "a data URI"),
    (b"base64,iVBORw0KGgo=", "a data URI"),
    (BASE64, "the base64 of a JPEG image"),
    (BASE64.rstrip(b"="), "the base64 of a JPEG image"),
    (base64.urlsafe_b64encode(CAT), "the base64 of a JPEG image"),
    (base64.encodebytes(CAT), "the base64 of a JPEG image"),
    (base64.encodebytes(CAT).replace(b"\n", b"\r\n"), "the base64 of a JPEG image"),
    (base64.b64encode(VALID_IMAGES["rgb.png"]), "the base64 of a PNG image"),
    (base64.b64encode(bytes(4) + b"ftypheic" + bytes(500)), "the base64 of a HEIC image"),
    (base64.encodebytes(bytes(range(256)) * 4), "what looks like base64"),
    (CAT.hex().encode(), "the hexadecimal digits of a JPEG image"),
    (b"https://example.org/cat.jpg", "a URL"),
    (b"HTTP://example.org/cat.jpg?" + b"x" * 2000, "a URL"),
    (b"file:///storage/emulated/0/cat.jpg", "a URL"),
    (b"content://media/external/images/1", "a URL"),
    (b"blob:https://example.org/8d3f", "a URL"),
    (b"undefined", "the word 'undefined'"),
    (b"null", "the word 'null'"),
    (b"None\n", "the word 'None'"),
    (b"NaN", "the word 'NaN'"),
    (b"[object Object]", "the text '[object Object]'"),
    (b"[object File]", "the text '[object File]'"),
    (b"<_io.BufferedReader name='cat.jpg'>", "_io.BufferedReader"),
    (b"[B@6d06d69c", "the text '[B@6d06d69c'"),
    (b"System.Byte[]", "the text 'System.Byte[]'"),
    (str(CAT[:100]).encode(), "bytes written as a Python literal"),
    (b'{"uri": "file:///cat.jpg", "type": "image/jpeg"}', "JSON"),
    (b'{"image": "data:image/jpeg;base64,' + BASE64 + b'"}', "JSON that holds a data URI"),
    (b'["data:image/jpeg;base64,' + BASE64 + b'"]', "JSON that holds a data URI"),
    (b"www.example.com/cat.jpg", "a URL"),
    (b"//example.com/cat.jpg", "a URL"),
    (b"java.io.File@1b2c3d", "the text 'java.io.File@1b2c3d'"),
    (quote_plus(b"data:image/jpeg;base64," + BASE64).encode(), "a data URI"),
    (quote_plus(BASE64).encode(), "the base64 of a JPEG image"),
    (quote(b"https://example.org/cat.jpg", safe="").encode(), "a URL"),
    (json.dumps(list(CAT[:100])).encode(), "JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "what"), NO_FILE)
def test_what_stands_in_place_of_a_file_is_named(client: TestClient, data: bytes, what: str) -> None:
    detail = detail_of(send(client, part('name="file"', data) + END), 400)
    assert detail.startswith(f"The part 'file' is {what}") or what in detail
    assert "not a file; " in detail
    for answer in (
        send(client, part('name="image"; filename="a.jpg"', data) + END),
        send(client, data, Content_Type="image/jpeg"),
        send(client, data, Content_Type="application/x-www-form-urlencoded"),
        send(client, data, Content_Type="text/plain;charset=UTF-8"),  # fetch(url, {body: text})
        send(client, data, Content_Type="application/json"),
    ):
        assert what in detail_of(answer, 415)
    detail = detail_of(send(client, part('name="note"', b"x") + part('name="image"', data) + END), 400)
    assert "the parts sent are named 'note', 'image' (" in detail
    assert what in detail


@pytest.mark.parametrize("name", ["file", "image", "file[]", "file%5B0%5D", "my+file"])
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (quote_plus(b"data:image/jpeg;base64," + BASE64).encode(), "a data URI"),  # requests data=, $.post
        (b"data:image/jpeg;base64," + BASE64, "a data URI"),  # curl -d
        (quote_plus(BASE64).encode(), "the base64 of a JPEG image"),
        (BASE64, "the base64 of a JPEG image"),
        (b"undefined", "the word 'undefined'"),
        (b"https%3A%2F%2Fexample.org%2Fcat.jpg", "a URL"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_a_field_that_holds_no_file_is_named(
    client: TestClient, name: str, value: bytes, what: str, content_type: str | None
) -> None:
    for ahead in (b"", b"top=5&note=a+cat&"):
        body = ahead + name.encode() + b"=" + value
        answer = client.post("/upload", content=body, headers={"Content-Type": content_type} if content_type else {})
        assert f"The body holds {what}; " in detail_of(answer, 415)


@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({"content-type": "text/plain"}, 1),
        ({"content-type": "application/json"}, 1),
        ({"content-type": "text/plain", "expect": "100-continue"}, 0),
        ({"content-type": "text/html"}, 0),
    ],
)
def test_text_is_read_no_further_than_its_first_bytes(headers: dict[str, str], taken: int) -> None:
    left = [b"data:image/png;base64," + b"A" * 1000] * 3

    async def chunks() -> AsyncIterator[bytes]:
        while left:
            yield left.pop()

    with pytest.raises(UnsupportedBody) as caught:
        upload_of({**headers, "transfer-encoding": "chunked"}, chunks(), UploadLimits(10**6, 1))
    assert len(left) == 3 - taken
    assert ("The body is a data URI" in str(caught.value)) == bool(taken)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"<svg xmlns='x'><path/></svg>", "text in a markup language, not a file; send the bytes of an image."),
        (b"<!DOCTYPE html><p>no</p>", "text in a markup language, not a file; send the bytes of an image."),
        (b"<?xml version='1.0'?><a/>", "text in a markup language, not a file; send the bytes of an image."),
        *((text, f"the text {text.decode()!r}, not a file; send the bytes of the file, which the client's variable")
          for text in (b"{}", b"[]", b"0", b'""', b"3.14", b"java.io.File@1b2c3d")),
    ],
)  # fmt: skip
def test_a_text_that_is_no_path_gets_no_advice_for_curl(client: TestClient, text: bytes, told: str) -> None:
    detail = detail_of(send(client, part('name="file"', text) + END), 400)
    assert detail.startswith(f"The part 'file' is {told}")
    assert "curl" not in detail


@pytest.mark.parametrize("name", ["x", "file"])
def test_files_in_a_part_of_their_own_type_are_told_so(client: TestClient, name: str) -> None:
    """What curl -F "x=@a.jpg,b.jpg" sends."""
    inner = b"--c\r\nContent-Disposition: attachment; filename=a.jpg\r\n\r\n" + CAT + b"\r\n--c--\r\n"
    body = part(f'name="{name}"', inner, "Content-Type: multipart/mixed; boundary=c\r\n")
    for form in (body, part('name="file"; filename="cat.jpg"') + body):
        told = detail_of(send(client, form + END), 415)
        assert told.startswith(f"The part '{name}' is of the type 'multipart/mixed', which is not supported; send each")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("cat.jpg", "cat.jpg"),
        ("@cat.jpg", "cat.jpg"),
        ("<cat.jpg", "cat.jpg"),
        ("/home/me/cat.jpg\n", "/home/me/cat.jpg"),
        ("C:\\fakepath\\cat.jpg", "C:\\fakepath\\cat.jpg"),
        ("C:/cat.jpg", "C:/cat.jpg"),
        ("猫.jpg", "猫.jpg"),
        ("a{1}.jpg", "a{1}.jpg"),
    ],
)
def test_a_path_in_place_of_a_file_gets_the_right_curl_command(client: TestClient, text: str, path: str) -> None:
    detail = detail_of(send(client, part('name="file"', text.encode()) + END), 400)
    assert detail == f"The part 'file' is the text {text.strip()!r}, not a file; with curl, write -F 'file=@{path}'."


@pytest.mark.parametrize(
    "text", [b"# a readme", b"", b"words " * 1000, b"<svg xmlns='x'><path/></svg>", b"PK\3\4", b"%PDF-1"]
)
def test_other_files_are_not_mistaken_for_such_texts(client: TestClient, text: bytes) -> None:
    for body in (part('name="file"; filename="a.jpg"', text), part('name="file"', text + bytes(300))):
        answer = send(client, body + END)
        assert answer.status_code in (400, 415)
        assert " It is " not in answer.json()["detail"]


@pytest.mark.parametrize("width", [0x2F3A, 40])
def test_an_image_without_filename_is_never_mistaken_for_text(client: TestClient, width: int) -> None:
    """The first bytes of a GIF of 12,090 columns are those of a URL: `GIF87a:/`."""
    gif = io.BytesIO()
    Image.new("P", (width, 1000)).save(gif, "GIF")
    assert gif.getvalue()[6:8] == width.to_bytes(2, "little")
    assert send(client, part('name="file"', gif.getvalue()) + END).status_code == 200


def test_v2_names_them_too(client: TestClient) -> None:
    twice = base64.b64encode(BASE64).decode()
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [twice]}
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [image]})
    assert answer.status_code == 415
    assert "the base64 of a JPEG image" in answer.json()["error"]


# The query


def test_list_true_always_gives_a_list(client: TestClient, right: dict[str, Any]) -> None:
    form = part('name="file"; filename="a.jpg"')
    for value in ("true", "True", "TRUE"):
        one = answer_to(client, form + END, f"?list={value}")
        assert one == {"results": [{"filename": "a.jpg", **right}]}
    raw = answer_to(client, CAT, "?list=true", Content_Type="image/jpeg")
    assert raw == {"results": [{"filename": "", **right}]}
    assert answer_to(client, form + END, "?list=false") == right
    assert len(answer_to(client, form * 2 + END, "?list=false")["results"]) == 2
    bad = answer_to(client, part('name="file"; filename="a.txt"', b"hello") + END, "?list=true")["results"]
    assert [(each["filename"], each["status"]) for each in bad] == [("a.txt", 415)]
    assert detail_of(send(client, part('name="note"', b"x") + END, "?list=true"), 400)


@pytest.mark.parametrize("value", ["", "1", "yes", "maybe", "true&list=true", "tru%C3%A9", "on"])
def test_another_value_of_list_is_refused(client: TestClient, value: str) -> None:
    assert "is neither true nor false" in detail_of(send(client, CAT, f"?list={value}", Content_Type="image/jpeg"), 400)


@pytest.mark.parametrize(
    ("query", "name", "nearest"),
    [
        ("topk=3", "topk", "top_k"),
        ("top-k=3", "top-k", "top_k"),
        ("TOP_K=3", "TOP_K", "top_k"),
        ("k=3", "k", "top_k"),
        ("treshold=0.2", "treshold", "threshold"),
        ("top_k=3&lists=true", "lists", "list"),
        ("format=json", "format", None),
        ("=3", "", None),
        ("x" * 500 + "=3", "x" * 40, None),
    ],
)
def test_an_unknown_parameter_is_named_with_the_nearest_known(
    client: TestClient, query: str, name: str, nearest: str | None
) -> None:
    detail = detail_of(send(client, CAT, f"?{query}", Content_Type="image/jpeg"), 400)
    assert f"There is no query parameter {name!r}; the nearest is " in detail
    assert nearest is None or f"the nearest is {nearest!r}" in detail
    assert "Known are top_k, threshold, list, embedding." in detail


def test_entries_of_top_k_have_the_number_of_their_class(client: TestClient, right: dict[str, Any]) -> None:
    names = json.loads((ROOT / "imagenet_class_index.json").read_text(encoding="utf-8"))
    assert [names[str(each["index"])] for each in right["top_k"]] == [
        [each["imagenet_id"], each["label"]] for each in right["top_k"]
    ]
    assert "index" not in right
    body = part('name="file"; filename="a"') * 2 + END
    assert [each["top_k"] for each in answer_to(client, body)["results"]] == [right["top_k"]] * 2


def test_a_threshold_drops_what_is_below_it_and_keeps_the_best_class(client: TestClient, right: dict[str, Any]) -> None:
    probabilities = [each["probability"] for each in right["top_k"]]
    for threshold in (0, probabilities[-1], probabilities[2], probabilities[0], 1):
        kept = [each for each in right["top_k"] if each["probability"] >= threshold]
        query = f"?threshold={threshold}"
        assert answer_to(client, CAT, query, Content_Type="image/jpeg") == {**right, "top_k": kept}
        listed = answer_to(client, part('name="file"; filename="a"') + END, f"{query}&list=true")
        assert listed["results"][0]["top_k"] == kept
    many = answer_to(client, CAT, "?top_k=1000&threshold=1e-9", Content_Type="image/jpeg")["top_k"]
    assert len(many) > 5


@pytest.mark.parametrize("value", ["0", "1", "0.2", ".2", "1.", "1e-3", "1E-3", "0." + "0" * 400])
def test_a_threshold_is_any_number_from_0_to_1(client: TestClient, value: str) -> None:
    assert send(client, CAT, f"?threshold={value}", Content_Type="image/jpeg").status_code == 200


NO_THRESHOLDS = ["", "nan", "NaN", "inf", "-inf", "-0.1", "1.1", "2", "0,2", "20%25", "1e9", "1e999", "0_1", "%D9%A1"]


@pytest.mark.parametrize("value", [*NO_THRESHOLDS, "a", "0.1&threshold=0.2", "%200.2", "0x1", "."])
def test_another_threshold_is_refused_with_the_range(client: TestClient, value: str) -> None:
    detail = detail_of(send(client, CAT, f"?threshold={value}", Content_Type="image/jpeg"), 400)
    assert detail.startswith("threshold=")
    assert "from 0 to 1" in detail


def test_a_large_picture_without_content_type_is_read_whole(client: TestClient) -> None:
    large = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).save(large, "PNG")
    assert len(large.getvalue()) > 1_000_000
    assert client.post("/upload", content=large.getvalue()).status_code == 200
