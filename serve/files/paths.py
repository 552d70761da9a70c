"""Expands the paths of a command line into files, one by one, in the same order every time.

Directories are walked, patterns matched, and `-` is a list of paths on standard input. A path that does not exist or
is no regular file is passed on, so that opening it reports the error; hidden files and links to directories are left
out and counted. Memory holds only the names in the directories being walked.
"""

import codecs
import fnmatch
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from typing import Final

from serve.errors import ConfigError
from serve.imaging.formats import sniff_format

STDIN_LIST: Final = "-"
_MAX_NAME: Final = 65536  # bytes; Linux allows a sixteenth of it
_ANY_DEPTH: Final = "**"
_STDIN: Final = 0  # read by its descriptor, because a thread waiting in sys.stdin would delay the end of the process
_CHUNK_BYTES: Final = 65536
_A_LIST: Final = "- reads a list of files, one per line or separated by NULs"
# Kinds of entries that are left out of a directory.
HIDDEN: Final = "hidden files or directories"
LINKED_DIRECTORY: Final = "links to directories"
# How the encodings of a list begin; the first that fits counts.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST_MARK: Final = 4
# In an image, but not in a list whose first name, such as GIF89a.gif, begins like one.
_NO_NAME: Final = re.compile(rb"\A\0|[\x01-\x08\x0b\x0c\x0e-\x1f]")
# A line feed or the end of a name such as `.jpg` in UTF-16; in a list with NULs it would be a row of one-byte names.
_UTF16_PIECE: Final = re.compile(rb"\0\n\0|\0\.\0[^\0]\0[^\0]\0")


def expand_paths(paths: Sequence[str], listed: Iterable[str], left_out: Counter[str] | None = None) -> Iterator[str]:
    """Yields the files that `paths` stand for.

    Args:
        listed: the paths that `-` stands for.
        left_out: counts the entries of directories that are left out, by kind.
    """
    left_out = Counter() if left_out is None else left_out
    for path in paths:
        if path == STDIN_LIST:
            yield from listed
        elif glob.has_magic(path) and not os.path.lexists(path):
            yield from _expand_pattern(path, left_out)
        elif os.path.isdir(path):
            yield from _walk(path, [_ANY_DEPTH], left_out)
        else:
            yield path


def standard_input() -> Iterator[bytes]:
    """Yields chunks of standard input as they arrive.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        while chunk := os.read(_STDIN, _CHUNK_BYTES):
            yield chunk
    except OSError as error:
        raise ConfigError(f"standard input: {(error.strerror or 'unreadable').lower()}") from error


def parse_file_list(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yields the names in a list as they arrive: one per line, or separated by NULs as by `find -print0`.

    A byte order mark at the beginning is skipped; UTF-16 and UTF-32 are recognised by it.

    Raises:
        ConfigError: this is no list, but an image, NULs, or names longer than any file's; or its lines end in CR alone;
            or it is not in the encoding of its byte order mark, or begins like UTF-16 without one.
    """
    yield from map(os.fsdecode, filter(None, _split(_in_utf8(iter(chunks)))))


def _in_utf8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yields a list without its byte order mark, in UTF-8 if the mark is of another encoding."""
    head = b""
    for chunk in chunks:
        head += chunk
        # A beginning that no mark has is passed on at once, unless it has no name yet.
        settled = len(head) >= _LONGEST_MARK or not any(mark.startswith(head) for mark, _ in _MARKS)
        if len(head) >= _CHUNK_BYTES or (settled and head.strip(b"\0")):
            break
    _require_names(head)
    mark, encoding = next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", ""))
    if encoding in ("", "utf-8"):
        if _UTF16_PIECE.search(head):
            raise ConfigError(
                "standard input: the list looks like UTF-16 without a byte order mark; write it in UTF-8, or with one"
            )
        yield from itertools.chain([head.removeprefix(mark)], chunks)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in itertools.chain([head], chunks):
            yield decoder.decode(chunk).encode()
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise ConfigError(
            f"standard input: the list has the byte order mark of {encoding.upper()}, but is not in it"
        ) from error


def _require_names(head: bytes) -> None:
    """Raises `ConfigError` if a list begins like an image or with nothing but NULs."""
    if head and not head.strip(b"\0"):
        raise ConfigError(f"standard input: NULs without names; {_A_LIST}")
    name = sniff_format(head)
    if name and _NO_NAME.search(head):
        raise ConfigError(f"standard input: this is an image ({name}); give it as a PATH; {_A_LIST}")


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest, end = b"", b""
    for chunk in chunks:
        rest += chunk
        end = end or next((each for each in (b"\0", b"\n") if each in rest), b"")
        *names, rest = rest.split(end) if end else [rest]
        for name in names:
            _require_length(name)
            yield from _parts(name, end)
        _require_length(rest)
    if not end and b"\r" in rest.rstrip(b"\r"):
        raise ConfigError(f"standard input: a list whose lines end in CR; {_A_LIST}; lines end in LF or CRLF")
    yield from _parts(rest, end)


def _require_length(name: bytes) -> None:
    if len(name) > _MAX_NAME:
        raise ConfigError(f"standard input: a name of more than {_MAX_NAME} bytes; {_A_LIST}")


def _parts(name: bytes, end: bytes) -> list[bytes]:
    """Splits a line at NULs too, because no name contains one."""
    return [name] if end == b"\0" else name.rstrip(b"\r").split(b"\0")


def _expand_pattern(pattern: str, left_out: Counter[str]) -> Iterator[str]:
    """Yields the matching files, without `**` also those in matching folders; if none match, the pattern itself."""
    segments = pattern.split("/")
    fixed = next(index for index, segment in enumerate(segments) if glob.has_magic(segment))
    root = "/".join([*segments[:fixed], ""])
    rest = [segment for segment in segments[fixed:] if segment not in ("", ".")]
    found = None
    if os.path.isdir(root or "."):
        for found in _walk(root, rest if _ANY_DEPTH in rest else [*rest, _ANY_DEPTH], left_out):
            yield found
    if found is None:
        yield pattern


def _walk(root: str, segments: Sequence[str], left_out: Counter[str]) -> Iterator[str]:
    """Yields a directory's files by name, then those of each subdirectory, where their paths match `segments`.

    `**` matches any number of names that are not hidden. Each directory is read once, in however many ways it matches,
    and links to directories are not followed.
    """
    matches = [re.compile(fnmatch.translate(segment)).match for segment in segments]

    def skip_empty(places: Iterable[int]) -> set[int]:
        """Adds the place after each `**`, which may match no name at all."""
        found = set(places)
        for place, segment in enumerate(segments):
            if place in found and segment == _ANY_DEPTH:
                found.add(place + 1)
        return found

    def advance(name: str, places: Iterable[int]) -> set[int]:
        """Returns the places in the pattern that follow a match of `name`, and counts a hidden one if it has none."""
        matching = [place for place in places if place < len(segments) and matches[place](name)]
        if name.startswith("."):
            shown = [place for place in matching if segments[place].startswith(".")]
            left_out[HIDDEN] += bool(matching) and not shown
            matching = shown
        return skip_empty(place + (segments[place] != _ANY_DEPTH) for place in matching)

    directories = [(root, skip_empty([0]))]
    while directories:
        path, places = directories.pop()
        try:
            with os.scandir(path or ".") as entries:
                found = [(entry.name, _kind(entry), then) for entry in entries if (then := advance(entry.name, places))]
        except OSError:
            yield path or "."  # opening it reports why it cannot be read
            continue
        found.sort(key=lambda each: each[0])
        for name, kind, then in found:
            if kind is _Kind.FILE and len(segments) in then:
                yield os.path.join(path, name)
            left_out[LINKED_DIRECTORY] += kind is _Kind.LINKED_DIRECTORY
        directories += [
            (os.path.join(path, name), then) for name, kind, then in reversed(found) if kind is _Kind.DIRECTORY
        ]


class _Kind(Enum):
    FILE = auto()
    DIRECTORY = auto()
    LINKED_DIRECTORY = auto()


def _kind(entry: os.DirEntry[str]) -> _Kind:
    """Returns what an entry is; all but directories counts as a file, dangling links and pipes too."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return _Kind.DIRECTORY
        return _Kind.LINKED_DIRECTORY if entry.is_dir() else _Kind.FILE
    except OSError:  # a link to itself or into a forbidden folder: opening it reports why
        return _Kind.FILE
