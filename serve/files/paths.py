"""Expands the paths of a command line into files, one by one, in the same order every time.

Directories are walked, patterns matched, and `-` is a list of paths on standard input. A path that does not exist is
passed on, so that opening it reports the error. Memory holds only the names in the directories being walked.
"""

import codecs
import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from typing import Final

from serve.errors import ConfigError

STDIN_LIST: Final = "-"
_MAX_NAME: Final = 65536  # bytes; Linux allows a sixteenth of it
_ANY_DEPTH: Final = "**"
_STDIN: Final = 0  # read by its descriptor, because a thread waiting in sys.stdin would delay the end of the process
_CHUNK_BYTES: Final = 65536


def expand_paths(paths: Sequence[str], listed: Iterable[str]) -> Iterator[str]:
    """Yields the files that `paths` stand for; `-` stands for the paths in `listed`."""
    for path in paths:
        if path == STDIN_LIST:
            yield from listed
        elif glob.has_magic(path) and not os.path.lexists(path):
            yield from _expand_pattern(path)
        elif os.path.isdir(path):
            yield from _walk(path, [_ANY_DEPTH])
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

    A byte order mark at the beginning is skipped.

    Raises:
        ConfigError: a name is longer than any file's, so this is not a list.
    """
    names = _split(chunks)
    for name in itertools.chain([next(names, b"").removeprefix(codecs.BOM_UTF8)], names):
        if name:
            yield os.fsdecode(name)


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest, end = b"", b""
    for chunk in chunks:
        rest += chunk
        end = end or next((each for each in (b"\0", b"\n") if each in rest), b"")
        if end:
            *names, rest = rest.split(end)
            for name in names:
                yield from _parts(name, end)
        if len(rest) > _MAX_NAME:
            raise ConfigError(
                f"standard input: a name of more than {_MAX_NAME} bytes; - reads a list of files, one per line or "
                "separated by NULs"
            )
    yield from _parts(rest, end)


def _parts(name: bytes, end: bytes) -> list[bytes]:
    """Splits a line at NULs too, because no name contains one."""
    return [name] if end == b"\0" else name.rstrip(b"\r").split(b"\0")


def _expand_pattern(pattern: str) -> Iterator[str]:
    """Yields the matching files, without `**` also those in matching folders; if none match, the pattern itself."""
    segments = pattern.split("/")
    fixed = next(index for index, segment in enumerate(segments) if glob.has_magic(segment))
    root = "/".join([*segments[:fixed], ""])
    rest = [segment for segment in segments[fixed:] if segment not in ("", ".")]
    found = None
    if os.path.isdir(root or "."):
        for found in _walk(root, rest if _ANY_DEPTH in rest else [*rest, _ANY_DEPTH]):
            yield found
    if found is None:
        yield pattern


def _walk(root: str, segments: Sequence[str]) -> Iterator[str]:
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
        """Returns the places in the pattern that follow a match of `name`."""
        hidden = name.startswith(".")
        return skip_empty(
            place + (segments[place] != _ANY_DEPTH)
            for place in places
            if place < len(segments) and matches[place](name) and (not hidden or segments[place].startswith("."))
        )

    directories = [(root, skip_empty([0]))]
    while directories:
        path, places = directories.pop()
        try:
            with os.scandir(path or ".") as entries:
                found = [
                    (entry.name, kind, then)
                    for entry in entries
                    if (then := advance(entry.name, places)) and (kind := _kind(entry)) is not _Kind.OTHER
                ]
        except OSError:
            yield path or "."  # opening it reports why it cannot be read
            continue
        found.sort(key=lambda each: each[0])
        for name, kind, then in found:
            if kind is _Kind.FILE and len(segments) in then:
                yield os.path.join(path, name)
        directories += [
            (os.path.join(path, name), then) for name, kind, then in reversed(found) if kind is _Kind.DIRECTORY
        ]


class _Kind(Enum):
    FILE = auto()
    DIRECTORY = auto()
    OTHER = auto()


def _kind(entry: os.DirEntry[str]) -> _Kind:
    """Returns what an entry is; a link counts as its target, but one to a directory as OTHER."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return _Kind.DIRECTORY
        return _Kind.FILE if entry.is_file() else _Kind.OTHER
    except OSError:  # a link to itself or into a forbidden folder: opening it reports why
        return _Kind.FILE
