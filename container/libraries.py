"""The shared libraries that programs link to, and the Debian packages that they come from."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from container.files import AssemblyError, below, copy, link_as_here

COMMON_LICENCES: Final = Path("/usr/share/common-licenses")


def copy_libraries(output: Path) -> None:
    """Copies the libraries that programs below `output` link to, with the licences of their Debian packages.

    Raises:
        AssemblyError: a library is missing.
    """
    # Libraries in a wheel's `NAME.libs` may find each other only by the search path of the module that needs them.
    programs = [path for path in elf_files(output) if path.parent.suffix != ".libs"]
    libraries = sorted(path for path in closure(programs) if output not in path.parents)
    for path in libraries:
        link_as_here(Path("/", path.parts[1]), output)
        copy(path, below(output, path))
    cache_libraries(output, libraries)
    packages = {package for path in libraries if (package := debian_package(path))}
    for package in sorted(packages):
        link_as_here(copyright_of(package).parent, output)
        for text in (copyright_of(package), *licences_named_in(copyright_of(package))):
            copy(text, below(output, text))


def elf_files(folder: Path) -> list[Path]:
    """Returns the programs and shared libraries below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    found.append(path)
    return found


def closure(files: Iterable[Path]) -> set[Path]:
    """Returns all shared libraries that `files` need, directly or not, as the dynamic linker finds them here.

    Raises:
        AssemblyError: a library is missing.
    """
    found: set[Path] = set()
    for path in files:
        report = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
        missing = re.findall(r"(\S+) => not found", report)
        if missing:
            raise AssemblyError(f"{path} needs {', '.join(missing)}, which the base image does not have")
        found |= {Path(os.path.normpath(library)) for library in re.findall(r"(/\S+) \(0x", report)}
    return found


def cache_libraries(output: Path, libraries: Iterable[Path]) -> None:
    """Writes the dynamic linker's cache of the new root, because some libraries are not in its default folders."""
    folders = sorted({str(path.parent) for path in libraries})
    (output / "etc").mkdir(exist_ok=True)
    subprocess.run(["ldconfig", "-r", str(output), "-X", *folders], check=True)
    shutil.rmtree(output / "var", ignore_errors=True)  # ldconfig's notes, with inodes and times in them


def debian_package(library: Path) -> str | None:
    """Returns the Debian package that a file is from; None if it was built separately, as CPython is."""
    for path in (library, library.resolve(), Path("/usr") / library.relative_to("/")):
        report = subprocess.run(["dpkg", "-S", str(path)], capture_output=True, text=True, check=False)
        if report.returncode == 0:
            return report.stdout.split(":")[0]
    return None


def copyright_of(package: str) -> Path:
    """Returns the file with the copyright and licence of a Debian package."""
    return Path("/usr/share/doc") / package / "copyright"


def licences_named_in(text: Path) -> list[Path]:
    """Returns the common licences that a Debian copyright file refers to instead of containing them."""
    return [
        path
        for name in re.findall(rf"{COMMON_LICENCES}/([\w.-]*\w)", text.read_text(encoding="utf-8"))
        if (path := COMMON_LICENCES / name).is_file()
    ]
