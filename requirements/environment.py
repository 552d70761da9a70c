"""Virtual environments from lock files, for `install.py`.

Uses the standard library only, because it runs before anything is installed. The environment records the sha256 of each
lock file it was installed from. If one of them has changed, the environment is made again; a lock file that it doesn't
have yet is added to it.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

RECORD = "installed-locks.json"
# Packages that a CPU build of torch replaces or does not need.
CUDA_PACKAGES = re.compile(r"(torch|torchvision|triton|nvidia-.+|cuda-.+)")
TORCH_PACKAGES = ("torch", "torchvision")
# PyTorch's own index: on Linux its CPU builds take 0.2 GB, the default index's CUDA builds 5 GB.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NO_INDEX = "none"
REACHABLE_SECONDS = 10


class InstallError(Exception):
    """The environment cannot be made. The message says why and what to do."""


def main(description: str) -> int:
    """Runs the command and returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python requirements/install.py", description=description)
    parser.add_argument("venv", type=Path, help="folder of the virtual environment")
    parser.add_argument(
        "locks", type=Path, nargs="+", metavar="lock", help="lock files with hashes, written by 'make lock'"
    )
    parser.add_argument(
        "--torch-index",
        metavar="URL",
        default=CPU_INDEX if sys.platform == "linux" else NO_INDEX,
        help="package index with CPU builds of torch (default on this system: %(default)s). If it cannot be reached, "
        f"or with '{NO_INDEX}', torch comes from the default index, whose Linux builds include CUDA",
    )
    options = parser.parse_args()
    try:
        install(options.venv, options.locks, options.torch_index)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 2
    return 0


def install(venv: Path, locks: list[Path], torch_index: str) -> None:
    """Creates or updates an environment.

    Args:
        venv: The environment's folder.
        locks: The lock files to install. Others that were installed before are kept.
        torch_index: URL of an index with CPU builds of torch, or `NO_INDEX`.

    Raises:
        InstallError: A lock file cannot be read, or Python's venv or pip failed.
    """
    recorded = _recorded(venv)
    wanted = {str(lock): _sha256(lock) for lock in locks}
    if wanted.items() <= recorded.items():
        return
    if any(Path(lock).is_file() and _sha256(Path(lock)) != sha256 for lock, sha256 in recorded.items()) or not recorded:
        _make_empty(venv)
        wanted |= {lock: _sha256(Path(lock)) for lock in recorded if Path(lock).is_file()}
        missing = wanted
    else:
        missing = {lock: sha256 for lock, sha256 in wanted.items() if lock not in recorded}
        wanted |= recorded
    for lock in missing:
        _say(f"Installing {lock} into {venv}")
        _install_lock(venv, Path(lock), torch_index)
    (venv / RECORD).write_text(json.dumps(wanted, indent=1))


def without_cuda(lock_text: str) -> str:
    """Returns a lock file's text without torch and the packages that only its CUDA build needs."""
    requirements = re.split(r"\n(?=\S)", lock_text)
    return "\n".join(entry for entry in requirements if not CUDA_PACKAGES.fullmatch(entry.split("==")[0])) + "\n"


def torch_pins(lock_text: str) -> list[str]:
    """Returns a lock file's `torch==…` and `torchvision==…`."""
    return [match for name in TORCH_PACKAGES for match in re.findall(rf"^{name}==[^\s;]+", lock_text, re.MULTILINE)]


def _install_lock(venv: Path, lock: Path, torch_index: str) -> None:
    text = lock.read_text(encoding="utf-8")
    pins = torch_pins(text)
    if not pins or torch_index == NO_INDEX or not _reachable(torch_index):
        _pip(venv, "--require-hashes", "-r", str(lock))
        return
    # The lock file has no hashes of this index's files: they are pinned by version only, and fetched over TLS.
    _pip(venv, "--no-deps", "--index-url", torch_index, *pins)
    with tempfile.TemporaryDirectory() as folder:
        rest = Path(folder) / lock.name
        rest.write_text(without_cuda(text), encoding="utf-8")
        _pip(venv, "--require-hashes", "-r", str(rest))


def _reachable(index: str) -> bool:
    _say(f"Checking whether {index} can be reached")
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=REACHABLE_SECONDS):  # noqa: S310  the user chose it
            return True
    except (urllib.error.URLError, OSError, ValueError) as error:
        _say(f"{index} cannot be reached ({getattr(error, 'reason', error)}); taking torch from the default index")
        return False


def _make_empty(venv: Path) -> None:
    if not importlib.util.find_spec("ensurepip"):
        raise InstallError("this Python has no venv module; on Debian and Ubuntu: apt install python3-venv")
    shutil.rmtree(venv, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(venv)], check=False)
    if made.returncode:
        raise InstallError(f"python -m venv {venv} failed; see its message above")


def _pip(venv: Path, *arguments: str) -> None:
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *quiet, *arguments]
    if subprocess.run(command, check=False).returncode:
        raise InstallError(
            "pip failed; see its message above. Is the package index reachable? Does it have wheels for this Python, "
            f"{sys.version_info[0]}.{sys.version_info[1]}? Choose another with make PYTHON=python3.12 ..."
        )


def _recorded(venv: Path) -> dict[str, str]:
    """Returns the sha256 of each lock file that a complete earlier run installed."""
    try:
        recorded: dict[str, str] = json.loads((venv / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return recorded if (venv / "bin" / "python").exists() else {}


def _sha256(lock: Path) -> str:
    try:
        return hashlib.sha256(lock.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"lock file {lock}: {error.strerror}") from error


def _say(text: str) -> None:
    print(text, flush=True)
