"""Paths as they are given on a command line → files, one by one, the same ones in the same order each time.

Directories are walked, patterns matched, `-` is a list of paths on standard input. What is not there is passed on as it
is, so that whoever opens it says so. Nothing is opened here, and no more is held than the names of the directories
being walked. Raises `ConfigError` for a list that is none.
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

LIST: Final = "-"
_LONGEST: Final = 65536  # sixteen times what Linux takes
_ANY_DEPTH: Final = "**"


def files_of(paths: Sequence[str], listed: Iterable[str]) -> Iterator[str]:
    """The files that `paths` stand for. listed: those of standard input, read where one of the paths is `-`."""
    for path in paths:
        if path == LIST:
            yield from listed
        elif glob.has_magic(path) and not os.path.lexists(path):
            yield from _matched(path)
        elif os.path.isdir(path):
            yield from _walked(path, [_ANY_DEPTH])
        else:
            yield path


def names_in(chunks: Iterable[bytes]) -> Iterator[str]:
    """The names in a list, each as soon as its end is there: one a line, or ended by NULs as of `find -print0`.

    A byte order mark before the first is no part of it. Raises `ConfigError` for a name longer than any file's.
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
        if len(rest) > _LONGEST:
            raise ConfigError(
                f"standard input: a name of more than {_LONGEST} bytes; - wants a list of files, one a line, or NULs "
                "between them"
            )
    yield from _parts(rest, end)


def _parts(name: bytes, end: bytes) -> list[bytes]:
    """A NUL that comes after a line can be part of no name either."""
    return [name] if end == b"\0" else name.rstrip(b"\r").split(b"\0")


def _matched(pattern: str) -> Iterator[str]:
    """The files that a pattern names, and those in folders that it names without `**`; itself where there are none."""
    segments = pattern.split("/")
    fixed = next(index for index, segment in enumerate(segments) if glob.has_magic(segment))
    root = "/".join([*segments[:fixed], ""])
    rest = [segment for segment in segments[fixed:] if segment not in ("", ".")]
    found = None
    if os.path.isdir(root or "."):
        for found in _walked(root, rest if _ANY_DEPTH in rest else [*rest, _ANY_DEPTH]):
            yield found
    if found is None:
        yield pattern


def _walked(root: str, segments: Sequence[str]) -> Iterator[str]:
    """A directory's files by name, then those of each directory in it, as far as `segments` match their names below it.

    `**` stands for any number of names that are not hidden. Each directory is read once, whatever the number of ways in
    which it matches, and links to directories are not followed.
    """
    matches = [re.compile(fnmatch.translate(segment)).match for segment in segments]

    def skipping(places: Iterable[int]) -> set[int]:
        """Places in the pattern, and those behind each `**` that stands for nothing."""
        found = set(places)
        for place, segment in enumerate(segments):
            if place in found and segment == _ANY_DEPTH:
                found.add(place + 1)
        return found

    def behind(name: str, places: Iterable[int]) -> set[int]:
        """Where in the pattern one is behind a name."""
        hidden = name.startswith(".")
        return skipping(
            place + (segments[place] != _ANY_DEPTH)
            for place in places
            if place < len(segments) and matches[place](name) and (not hidden or segments[place].startswith("."))
        )

    directories = [(root, skipping([0]))]
    while directories:
        path, places = directories.pop()
        try:
            with os.scandir(path or ".") as entries:
                found = [
                    (entry.name, kind, then)
                    for entry in entries
                    if (then := behind(entry.name, places)) and (kind := _kind(entry)) is not _Kind.OTHER
                ]
        except OSError:
            yield path or "."  # which cannot be read, as whoever opens it will say
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
    """What an entry is; of a link what it leads to, unless that is a directory."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return _Kind.DIRECTORY
        return _Kind.FILE if entry.is_file() else _Kind.OTHER
    except OSError:  # a link that leads to itself or to where one may not look: whoever opens it will say so
        return _Kind.FILE
