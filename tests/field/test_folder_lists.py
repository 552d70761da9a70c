"""Lists of files for `classify -`: encodings, line ends and separators."""

import codecs
import subprocess
from pathlib import Path

import pytest

from serve.config.settings import ROOT
from serve.errors import ConfigError
from serve.files.paths import parse_file_list
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
