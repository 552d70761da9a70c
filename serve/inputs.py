"""Paths as they are given on a command line → files, one by one, the same ones in the same order each time.

Directories are walked, patterns matched, `-` is a list of paths on standard input. What is not there is passed on as it
is, so that whoever opens it says so. Nothing is opened here, and no more is held than the names of the directories
being walked. No error leaves this module.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

LIST: Final = "-"


def files_of(paths: Sequence[str], listed: Iterable[str]) -> Iterator[str]:
    """The files that `paths` stand for. listed: lines of standard input, read where one of the paths is `-`."""
    for path in paths:
        if path == LIST:
            yield from (line for line in (line.rstrip("\r\n") for line in listed) if line)
        elif glob.has_magic(path) and not os.path.lexists(path):
            found = sorted(glob.glob(path, recursive=True))
            for each in found or [path]:
                yield from _walked(each)
        else:
            yield from _walked(path)


def _walked(path: str) -> Iterator[str]:
    """A directory's files by name, then those of each directory in it; hidden ones are left out, links to directories
    are not followed."""
    if not os.path.isdir(path):
        yield path
        return
    directories = []
    try:
        with os.scandir(path) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False), entry.is_file()) for entry in entries]
    except OSError:
        yield path  # which cannot be read, as whoever opens it will say
        return
    for name, is_directory, is_file in sorted(names):
        if name.startswith("."):
            continue
        if is_directory:
            directories.append(name)
        elif is_file:
            yield os.path.join(path, name)
    for name in directories:
        yield from _walked(os.path.join(path, name))
