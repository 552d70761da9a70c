"""The wheel and the source distribution in build/dist, and the wheel installed for each supported Python that is there.

An installation is as a new user's: a virtual environment of its own, packages from the index as pip chooses them. Its
files are then read-only, for root too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.permissions import drop_root
from tests.server_process import ROOT

DIST = ROOT / "build" / "dist"
CAT = ROOT / "tests" / "data" / "photos" / "cat.jpg"
# Lines of the table that is printed at the end.
TABLE: list[str] = []


def python_of(version: str) -> str:
    """Returns an interpreter of a version, on the PATH or among pyenv's; empty if there is none."""
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    of_pyenv = [str(path) for path in (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")]
    for command in (sys.executable, shutil.which(f"python{version}"), *of_pyenv):
        if command:
            asked = subprocess.run([command, "-c", question], capture_output=True, text=True, check=False)
            if asked.stdout.strip() == version:
                return command
    return ""


PYTHONS = {version: python_of(version) for version in ("3.11", "3.12", "3.13", "3.14")}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = [version for version, python in PYTHONS.items() if not python]
    if missing:
        TABLE.append(f"not on this machine, so not tested: Python {', '.join(missing)}")
    terminalreporter.section("release")
    terminalreporter.write_line("\n".join(TABLE))


def only(pattern: str) -> Path:
    """Returns the one file in build/dist that matches."""
    found = list(DIST.glob(pattern))
    assert len(found) == 1, f"build/dist has {len(found)} files {pattern}; run make release-check"
    return found[0]


@pytest.fixture(scope="session")
def wheel() -> Path:
    return only("*.whl")


@pytest.fixture(scope="session")
def sdist() -> Path:
    return only("*.tar.gz")


@dataclass(frozen=True)
class Installed:
    """The wheel in an environment.

    Attributes:
        folder: The environment.
        site: Its site-packages.
        empty: An empty folder to run programs in.
    """

    folder: Path
    site: Path
    empty: Path

    def start(
        self, *arguments: object, folder: Path | None = None, program: str = "densenet-server"
    ) -> subprocess.Popen[str]:
        """Starts a program of the environment in a folder, by default in the empty one."""
        return subprocess.Popen(
            [str(self.folder / "bin" / program), *map(str, arguments)],
            cwd=folder or self.empty,
            env={name: value for name, value in os.environ.items() if not name.startswith("SERVE_")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=drop_root,
        )

    def run(
        self, *arguments: object, folder: Path | None = None, program: str = "densenet-server"
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end."""
        with self.start(*arguments, folder=folder, program=program) as process:
            printed, error = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, printed, error)


@pytest.fixture(scope="session", params=[version for version, python in PYTHONS.items() if python])
def installed(request: pytest.FixtureRequest, wheel: Path) -> Iterator[Installed]:
    with tempfile.TemporaryDirectory() as folder:
        made = install(PYTHONS[request.param], request.param, wheel, Path(folder))
        set_writable(made.site, False)
        yield made
        set_writable(made.site, True)


def install(python: str, version: str, wheel: Path, folder: Path) -> Installed:
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    began = time.perf_counter()
    subprocess.run([*pip, str(wheel)], check=True)
    TABLE.append(f"Python {version}: pip install took {time.perf_counter() - began:.1f} s")
    (folder / "empty").mkdir()
    return Installed(folder / "venv", folder / "venv" / "lib" / f"python{version}" / "site-packages", folder / "empty")


def set_writable(folder: Path, writable: bool) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200 if writable else path.stat().st_mode & ~0o222)


def listing(folder: Path) -> Sequence[tuple[str, int]]:
    """Returns all paths in a folder with the times at which they were changed."""
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))
