"""Makes the container image's root file system: interpreter, standard library, locked packages, shared libraries.

    python -m container.assemble --packages /packages --output /rootfs

Files are copied to the same paths as here. The running interpreter and the dynamic linker say where they are, so the
code names no architecture. `container/rules.py` lists what is left out.
"""

import argparse
import compileall
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from importlib.metadata import distributions as installed
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Final

from container.files import AssemblyError, below, copy
from container.libraries import COMMON_LICENCES, closure, copy_libraries, elf_files
from container.rules import (
    KEPT_METADATA,
    LEFT_OUT_DISTRIBUTIONS,
    LEFT_OUT_OF_PACKAGES,
    LEFT_OUT_OF_STANDARD_LIBRARY,
    LICENCES_WITHOUT_TEXT,
)

STANDARD_LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
SITE_PACKAGES: Final = Path(sysconfig.get_path("purelib"))


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m container.assemble", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder that pip installed into with --target")
    parser.add_argument("--output", type=Path, required=True, help="folder to make, the new root")
    options = parser.parse_args()
    try:
        assemble(options.packages, options.output)
    except (AssemblyError, OSError) as error:
        print(f"assemble: {error}", file=sys.stderr)
        return 1
    return 0


def assemble(packages: Path, output: Path) -> None:
    """Makes the root file system in `output`, which must not exist.

    Raises:
        AssemblyError: a rule is out of date, a module does not compile, or a library is missing.
    """
    copy_interpreter(output)
    copy_tree(STANDARD_LIBRARY, below(output, STANDARD_LIBRARY), LEFT_OUT_OF_STANDARD_LIBRARY)
    site = below(output, SITE_PACKAGES)
    copy_tree(packages, site, (*LEFT_OUT_OF_PACKAGES, *files_of(packages, LEFT_OUT_DISTRIBUTIONS)))
    trim_metadata(site)
    add_licences(site)
    drop_unlinked(site)
    compile_all(output)
    copy_libraries(output)


def copy_interpreter(output: Path) -> None:
    """Copies the interpreter's binary, and links `python` and `python3` to it."""
    binary = Path(sys.executable).resolve()
    target = below(output, binary)
    copy(binary, target)
    for name in ("python", "python3"):
        (target.parent / name).symlink_to(binary.name)


def copy_tree(source: Path, target: Path, left_out: Iterable[str]) -> None:
    """Copies the files of a folder that match no pattern; `.pyc` files are left out, because they are made again."""
    patterns = (*left_out, "*.pyc")
    for path in sorted(source.rglob("*")):
        relative = str(path.relative_to(source))
        if path.is_file() and not any(fnmatch(relative, pattern) for pattern in patterns):
            copy(path, target / relative)


def files_of(packages: Path, distributions: Iterable[str]) -> Iterator[str]:
    """Yields the files of installed distributions, relative to `packages`, from their records.

    Raises:
        AssemblyError: a distribution is not installed.
    """
    found = {distribution.name: distribution for distribution in installed(path=[str(packages)])}
    for name in distributions:
        if name not in found:
            raise AssemblyError(f"{name} is not installed, so the rule that leaves it out is out of date")
        yield from (str(file) for file in found[name].files or ())


def trim_metadata(site: Path) -> None:
    """Keeps name, version and licence of each `.dist-info`; descriptions are long and not needed."""
    for folder in site.glob("*.dist-info"):
        for path in folder.rglob("*"):
            relative = f"{folder.name}/{path.relative_to(folder)}"
            if path.is_file() and not any(fnmatch(relative, pattern) for pattern in KEPT_METADATA):
                path.unlink()
        metadata = folder / "METADATA"
        headers = metadata.read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
        kept = [line for line in headers if line.startswith(("Metadata-Version:", "Name:", "Version:", "License"))]
        metadata.write_text("\n".join(kept) + "\n", encoding="utf-8")


def add_licences(site: Path) -> None:
    """Copies the texts of licences that installed packages name without them."""
    for name, licences in LICENCES_WITHOUT_TEXT.items():
        for folder in site.glob(f"{name}-*.dist-info"):
            for licence in licences:
                copy(COMMON_LICENCES / licence, folder / "licenses" / licence)


def drop_unlinked(site: Path) -> None:
    """Removes the libraries that wheels bundle in `NAME.libs` and that no kept module links to."""
    bundled = [path for folder in site.glob("*.libs") for path in folder.iterdir()]
    linked = {path.resolve() for path in closure(path for path in elf_files(site) if path not in bundled)}
    for path in bundled:
        if path.resolve() not in linked:
            path.unlink()


def compile_all(output: Path) -> None:
    """Byte-compiles all modules and removes their source; the result depends neither on the time nor on `output`."""
    compiled = compileall.compile_dir(
        output,
        maxlevels=30,
        quiet=2,
        legacy=True,  # beside the source, where Python looks for modules without source
        stripdir=str(output),
        prependdir="/",
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        raise AssemblyError(f"not every module below {output} compiles; python -m compileall says which")
    for source in output.rglob("*.py"):
        source.unlink()


if __name__ == "__main__":
    sys.exit(main())
