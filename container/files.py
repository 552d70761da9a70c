"""Paths and copies below the new root, and the error that ends an assembly."""

import shutil
from pathlib import Path


class AssemblyError(Exception):
    """The root file system cannot be made; the message names the file that is to blame."""


def below(root: Path, path: Path) -> Path:
    """Returns where an absolute path lies in another root."""
    return root / path.relative_to("/")


def copy(source: Path, target: Path) -> None:
    """Copies content and mode to the target's own name; links are followed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    shutil.copymode(source, target)


def link_as_here(folder: Path, output: Path) -> None:
    """Makes the same symbolic link in `output` if the folder, such as `/lib`, is one here.

    Otherwise one root file system could not be copied over the other.
    """
    link = below(output, folder)
    if folder.is_symlink() and not link.exists():
        (link.parent / folder.readlink()).mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.readlink())
