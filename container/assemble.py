"""Lay out the image's root file system: interpreter, standard library, locked packages, and the libraries they link to.

    python -m container.assemble --packages /packages --output /rootfs

Everything is copied to the path it has here, found by asking the running interpreter and the dynamic linker, so that
nothing names an architecture. What is left out goes by the rules below. Errors that leave here: `AssemblyError`.
"""

import argparse
import compileall
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Final

STANDARD_LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
SITE_PACKAGES: Final = Path(sysconfig.get_path("purelib"))

# Patterns of paths below a folder; `*` matches any characters, slashes too.
LEFT_OUT_OF_STANDARD_LIBRARY: Final = (
    "site-packages/*",
    "config-*",  # for embedding the interpreter in C
    # Tk, the editor and the demonstrations that need it; terminals
    "tkinter/*",
    "idlelib/*",
    "turtle*",
    "curses/*",
    "lib-dynload/_tkinter.*",
    "lib-dynload/_curses*",
    "lib-dynload/readline.*",
    # installing, converting and documenting packages
    "ensurepip/*",
    "venv/*",
    "distutils/*",
    "lib2to3/*",
    "pydoc*",
    # databases, and the rest that a server of pictures has no use for
    "sqlite3/*",
    "lib-dynload/_sqlite3.*",
    "dbm/*",
    "lib-dynload/_*dbm.*",
    "lib-dynload/nis.*",
    "lib-dynload/_crypt.*",
    "lib-dynload/ossaudiodev.*",
    "lib-dynload/_test*",
    "lib-dynload/_ctypes_test.*",
    "lib-dynload/xx*",
    "*/test/*",
    "*/tests/*",
    "test/*",
    "unittest/*",
    "doctest*",
    "__phello__/*",
    "ctypes/macholib/*",  # for another system
    "lib-dynload/_codecs_*",  # encodings of East Asia before Unicode
)
# What no server imports, whichever the package.
LEFT_OUT_OF_PACKAGES: Final = (
    "bin/*",
    "*/tests/*",
    "*/testing/*",
    "*.pyi",
    "*.pxd",
    "*.pyx",
    "*.h",
    "*.a",
    "*/py.typed",
    # numpy: bridges to Fortran and C, and how to build against it
    "numpy/f2py/*",
    "numpy/distutils/*",
    "numpy/_pyinstaller/*",
    "numpy/_core/lib/*",
    # … its own tests' modules, and mathematics that no picture needs
    "numpy/_core/*_tests.*",
    "numpy/_core/_simd.*",
    "numpy/random/*",
    "numpy/fft/*",
    "numpy/ma/*",
    "numpy/polynomial/*",
    # onnxruntime: making and changing models, and a second copy of the engine, for programs in C
    "onnxruntime/transformers/*",
    "onnxruntime/tools/*",
    "onnxruntime/quantization/*",
    "onnxruntime/datasets/*",
    "onnxruntime/backend/*",
    "onnxruntime/capi/libonnxruntime.so.*",
    # Pillow: windows, fonts and colour management
    "PIL/_imagingtk.*",
    "PIL/_imagingft.*",
    "PIL/_imagingcms.*",
)
# What onnxruntime declares and only its tools import.
LEFT_OUT_DISTRIBUTIONS: Final = ("flatbuffers", "protobuf", "packaging")
# What says of an installed package who made it and under which licence; the rest serves installers.
KEPT_METADATA: Final = (
    "*/METADATA",
    "*/LICEN[CS]E*",
    "*/NOTICE*",
    "*/AUTHORS*",
    "*/COPYING*",
    "*/licenses/*",
    "*/sboms/*",
)


class AssemblyError(Exception):
    """The root file system cannot be made; the message says which file is why."""


def main() -> int:
    """Run the command; the process's exit status."""
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
    """Make the root file system in `output`, which must not be there yet; raises `AssemblyError`."""
    copy_interpreter(output)
    library = _below(output, STANDARD_LIBRARY)
    copy_tree(STANDARD_LIBRARY, library, LEFT_OUT_OF_STANDARD_LIBRARY)
    site = _below(output, SITE_PACKAGES)
    copy_tree(packages, site, (*LEFT_OUT_OF_PACKAGES, *files_of(packages, LEFT_OUT_DISTRIBUTIONS)))
    trim_metadata(site)
    drop_unlinked(site)
    compile_all(output)
    libraries = sorted(path for path in closure(elf_files(output)) if output not in path.parents)
    for path in libraries:
        link_as_here(Path("/", path.parts[1]), output)
        _copy(path, _below(output, path))
    cache_libraries(output, libraries)
    owners = {owner for path in libraries if (owner := debian_package(path))}
    for owner in sorted(owners):
        link_as_here(copyright_of(owner).parent, output)
        for text in (copyright_of(owner), *licences_named_in(copyright_of(owner))):
            _copy(text, _below(output, text))


def copy_interpreter(output: Path) -> None:
    """The interpreter's binary, and `python` and `python3` beside it."""
    binary = Path(sys.executable).resolve()
    target = _below(output, binary)
    _copy(binary, target)
    for name in ("python", "python3"):
        (target.parent / name).symlink_to(binary.name)


def copy_tree(source: Path, target: Path, left_out: Iterable[str]) -> None:
    """Copy the files of a folder that no pattern names; `.pyc` files are always left out, being made afresh."""
    patterns = (*left_out, "*.pyc")
    for path in sorted(source.rglob("*")):
        relative = str(path.relative_to(source))
        if path.is_file() and not any(fnmatch(relative, pattern) for pattern in patterns):
            _copy(path, target / relative)


def files_of(packages: Path, distributions: Iterable[str]) -> Iterator[str]:
    """The files of installed distributions, relative to `packages`, by their own records."""
    from importlib.metadata import distributions as installed

    found = {distribution.name: distribution for distribution in installed(path=[str(packages)])}
    for name in distributions:
        if name not in found:
            raise AssemblyError(f"{name} is to be left out and is not there; is the rule out of date?")
        yield from (str(file) for file in found[name].files or ())


def trim_metadata(site: Path) -> None:
    """Of each `.dist-info` keep name, version and licence; descriptions are pages of advertisement."""
    for folder in site.glob("*.dist-info"):
        for path in folder.rglob("*"):
            relative = f"{folder.name}/{path.relative_to(folder)}"
            if path.is_file() and not any(fnmatch(relative, pattern) for pattern in KEPT_METADATA):
                path.unlink()
        metadata = folder / "METADATA"
        headers = metadata.read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
        kept = [line for line in headers if line.startswith(("Metadata-Version:", "Name:", "Version:", "License"))]
        metadata.write_text("\n".join(kept) + "\n", encoding="utf-8")


def drop_unlinked(site: Path) -> None:
    """Remove the libraries that wheels bring in `NAME.libs` where no kept module links to them any more."""
    brought = [path for folder in site.glob("*.libs") for path in folder.iterdir()]
    linked = {path.resolve() for path in closure(path for path in elf_files(site) if path not in brought)}
    for path in brought:
        if path.resolve() not in linked:
            path.unlink()


def compile_all(output: Path) -> None:
    """Byte-compile everything and keep only that, in a form that depends neither on the time nor on `output`."""
    compiled = compileall.compile_dir(
        output,
        maxlevels=30,
        quiet=2,
        legacy=True,  # beside the source, where modules without source are looked for
        stripdir=str(output),
        prependdir="/",
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        raise AssemblyError(f"not every module below {output} compiles; python -m compileall says which")
    for source in output.rglob("*.py"):
        source.unlink()


def elf_files(folder: Path) -> list[Path]:
    """The programs and shared libraries below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    found.append(path)
    return found


def closure(files: Iterable[Path]) -> set[Path]:
    """All shared libraries that `files` need, directly or not, where the dynamic linker finds them here.

    Raises `AssemblyError` where one is not to be found.
    """
    found: set[Path] = set()
    for path in files:
        report = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
        missing = re.findall(r"(\S+) => not found", report)
        if missing:
            raise AssemblyError(f"{path} needs {', '.join(missing)}, which the base image does not have")
        found |= {Path(os.path.normpath(library)) for library in re.findall(r"(/\S+) \(0x", report)}
    return found


def link_as_here(folder: Path, output: Path) -> None:
    """Where `/lib` is a link to `usr/lib` here, make it one there, so that one root can be copied over the other."""
    link = _below(output, folder)
    if folder.is_symlink() and not link.exists():
        (link.parent / folder.readlink()).mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.readlink())


def cache_libraries(output: Path, libraries: Iterable[Path]) -> None:
    """Tell the dynamic linker of the new root where its libraries are, some being outside its default folders."""
    folders = sorted({str(path.parent) for path in libraries})
    (output / "etc").mkdir(exist_ok=True)
    subprocess.run(["ldconfig", "-r", str(output), "-X", *folders], check=True)
    shutil.rmtree(output / "var", ignore_errors=True)  # its notes on inodes and times


def debian_package(library: Path) -> str | None:
    """The distribution's package that a file came with; None for what was built on its own, as CPython is."""
    for path in (library, library.resolve(), Path("/usr") / library.relative_to("/")):
        report = subprocess.run(["dpkg", "-S", str(path)], capture_output=True, text=True, check=False)
        if report.returncode == 0:
            return report.stdout.split(":")[0]
    return None


def copyright_of(debian: str) -> Path:
    return Path("/usr/share/doc") / debian / "copyright"


def licences_named_in(text: Path) -> list[Path]:
    """The common licences that one of Debian's copyright files refers to instead of repeating them."""
    return [
        path
        for name in re.findall(r"/usr/share/common-licenses/([\w.-]*\w)", text.read_text(encoding="utf-8"))
        if (path := Path("/usr/share/common-licenses", name)).is_file()
    ]


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _copy(source: Path, target: Path) -> None:
    """Contents and mode, under the name it is asked for by, whatever links lead there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    shutil.copymode(source, target)


if __name__ == "__main__":
    sys.exit(main())
