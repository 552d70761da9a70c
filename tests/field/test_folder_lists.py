"""Lists of files for `classify -`: encodings, line ends and separators."""

import codecs
import subprocess
from pathlib import Path

import pytest

from serve.config.settings import ROOT
from serve.errors import ConfigError
from serve.files.paths import parse_file_list
from tests.references import PICTURES
from tests.serve.conftest import PHOTOS
from tests.serve.test_classify import COMMAND, MODEL, records

NAMES = ["a b.jpg", "Fotos/Köln.jpg", "写真/犬🐕.jpg", "c.png"]
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def chunks(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("encoding", MARKS)
def test_a_list_with_a_byte_order_mark_is_read(encoding: str, end: str, size: int) -> None:
    for last in (end, ""):
        data = MARKS[encoding] + (end.join(NAMES) + last).encode(encoding)
        assert list(parse_file_list(chunks(data, size))) == NAMES


@pytest.mark.parametrize("encoding", MARKS)
def test_a_list_of_nothing_but_a_byte_order_mark_is_empty(encoding: str) -> None:
    assert list(parse_file_list([MARKS[encoding]])) == []


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("names", [NAMES, ["x.jpg"], ["写真.jpg", "犬.jpg"], ["/a/b.jpeg"]])
def test_utf_16_without_a_mark_is_told_in_one_line(encoding: str, end: str, names: list[str]) -> None:
    data = "".join(name + end for name in names).encode(encoding)
    with pytest.raises(ConfigError, match="looks like UTF-16 without a byte order mark; write it in UTF-8"):
        list(parse_file_list([data]))


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "c", "d", "e"],
        [".", "./1", "./2", "a"],
        ["1", "a/b", "2", "a/c", "3", "4"],
        ["/", "/a", "/b"],
        ["x.", "y.jpg"],
        ["a\nb", "\nc", "d\n"],
    ],
)
def test_short_names_between_nuls_are_not_taken_for_utf_16(names: list[str]) -> None:
    data = "".join(name + "\0" for name in names).encode()
    assert list(parse_file_list([data])) == names


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF16_LE + "a.jpg\n".encode("utf-16-le") + b"x",
        codecs.BOM_UTF16_LE + b"\x00\xd8\n\x00",
        codecs.BOM_UTF32_LE + b"abcdefgh",
    ],
)
def test_a_list_that_is_not_in_the_encoding_of_its_mark_is_told_in_one_line(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"the list has the byte order mark of UTF-[0-9]+, but is not in it"):
        list(parse_file_list([data]))


@pytest.mark.parametrize("size", [4096, 65536])
@pytest.mark.parametrize(
    "picture",
    [
        PHOTOS / "cat.jpg",
        *(PICTURES / name for name in ("rgb.png", "rgb.webp", "palette.gif", "rgb.bmp", "rgb.tiff", "rgb.avif")),
    ],
    ids=lambda path: path.name,
)
def test_an_image_in_place_of_a_list_is_told_in_one_line(picture: Path, size: int) -> None:
    with pytest.raises(ConfigError, match=r"standard input: this is an image \(\w+\); give it as a PATH; - reads"):
        list(parse_file_list(chunks(picture.read_bytes(), size)))


@pytest.mark.parametrize("name", ["GIF89a.gif", "BM.bmp", "II*.tif", "RIFF1234WEBP.webp"])
@pytest.mark.parametrize("end", ["\n", "\0"])
def test_a_name_that_begins_like_an_image_is_a_name(name: str, end: str) -> None:
    names = [name, *NAMES]
    assert list(parse_file_list([end.join(names).encode()])) == names


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1, 100), (65536, 200_000)])
def test_nuls_without_names_are_told_in_one_line(size: int, count: int) -> None:
    with pytest.raises(ConfigError, match="standard input: NULs without names; - reads a list of files"):
        list(parse_file_list(chunks(bytes(count), size)))


def test_names_may_follow_nuls() -> None:
    assert list(parse_file_list([b"\0", b"\0", b"\0a.jpg\0", b"b.jpg"])) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("size", [1, 7, 65536])
def test_lines_that_end_in_cr_alone_are_told_in_one_line(size: int) -> None:
    with pytest.raises(ConfigError, match=r"standard input: a list whose lines end in CR; .*; lines end in LF or CRLF"):
        list(parse_file_list(chunks(b"a.jpg\rb.jpg\r", size)))


def test_cr_within_a_name_is_part_of_it() -> None:
    assert list(parse_file_list([b"a\rb.jpg\nc.jpg"])) == ["a\rb.jpg", "c.jpg"]
    assert list(parse_file_list([b"a.jpg\r"])) == ["a.jpg"]


@pytest.mark.parametrize("end", [b"\n", b"\0"])
@pytest.mark.parametrize("at", [65536, 65537, 70_000])
def test_a_name_is_too_long_wherever_it_ends(end: bytes, at: int) -> None:
    longest = b"x" * 65536
    assert len(list(parse_file_list(chunks(b"a" + end + longest + end, at)))) == 2
    for data in (longest + b"x" + end, b"a" + end + longest + b"x" + end + b"b" + end):
        with pytest.raises(ConfigError, match="a name of more than 65536 bytes"):
            list(parse_file_list(chunks(data, at)))


@pytest.mark.parametrize(("encoding", "mark"), [("utf-16-le", True), ("utf-16-be", True), ("utf-16-le", False)])
def test_the_command_reads_or_refuses_the_list(tmp_path: Path, encoding: str, mark: bool) -> None:
    path = tmp_path / "Köln 🐕.jpg"
    path.symlink_to(PHOTOS / "cat.jpg")
    listed = MARKS[encoding] * mark + f"{path}\r\nnone.jpg\r\n".encode(encoding)
    done = subprocess.run([*COMMAND, "-"], cwd=ROOT, input=listed, capture_output=True, timeout=60, check=False)
    error = done.stderr.decode()
    if mark:
        found = records(done.stdout.decode())
        assert (done.returncode, [record["file"] for record in found]) == (1, [str(path), "none.jpg"]), error
        assert found[0]["top_k"]
    else:
        assert (done.returncode, done.stdout) == (2, b"")
        assert error == (
            f"{MODEL}serve: standard input: the list looks like UTF-16 without a byte order mark; write it in UTF-8, "
            "or with one\n"
        )
