"""The CPUs that models are run on: the native one, and those of qemu for x86-64 and arm64, downloaded on first use."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from serve.config.settings import ROOT

CACHE = ROOT / "build" / "cpus"
RUNTIME = ROOT / ".venv" / "runtime" / "bin" / "python"
LOCK = ROOT / "requirements" / "runtime.txt"
# The Python of Debian 12, whose packages are used. The wheels have to be of the same version.
_ARM_PYTHON = "3.11"
_ARM_PACKAGES = (f"python{_ARM_PYTHON}-minimal", f"libpython{_ARM_PYTHON}-stdlib", "libstdc++6", "zlib1g")
_ARM_WHEELS = ("numpy", "onnxruntime")
_ARM_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
# onnxruntime crashes at import on arm64 if it reads the host's x86 caches there.
_HIDE_HOST_CPUS = """
mount -t tmpfs -o size=64k tmpfs /sys/devices/system/cpu
for file in possible present online; do echo 0 >/sys/devices/system/cpu/$file; done
exec "$@"
"""


class SetupError(Exception):
    """Something that the command needs is missing; the message says what, and what to do."""


@dataclass(frozen=True)
class Machine:
    """A CPU, and what it has to report about itself.

    Attributes:
        name: for people; qemu's name of the CPU, if it is emulated.
        machine: `platform.machine()` on it.
        has: features that it must have.
        lacks: features that it must not have.
        part: bits 4 to 15 of MIDR_EL1, on arm64; 0 for any.
    """

    name: str
    machine: str
    has: frozenset[str] = field(default_factory=frozenset)
    lacks: frozenset[str] = field(default_factory=frozenset)
    part: int = 0

    @property
    def emulated(self) -> bool:
        return self is not NATIVE

    def command(self) -> list[str]:
        """Returns the Python to run on this CPU, as the beginning of a command line."""
        if not self.emulated:
            return [str(RUNTIME)]
        emulator = [str(CACHE / "qemu" / "usr" / "bin" / f"qemu-{self.machine}-static"), "-cpu", self.name]
        if self.machine == "x86_64":
            return [*emulator, str(RUNTIME)]
        system = CACHE / "arm64"
        python = str(system / "usr" / "bin" / f"python{_ARM_PYTHON}")
        hidden = ["unshare", "--mount", "sh", "-ec", _HIDE_HOST_CPUS, "sh"]
        return [*hidden, *emulator, "-L", str(system), python]

    def environment(self) -> dict[str, str]:
        """Returns the environment variables of a process on this CPU."""
        own = {"PYTHONPATH": str(CACHE / "wheels")} if self.machine == "aarch64" else {}
        return os.environ | {"ORT_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"} | own


def _x86(name: str, has: str, lacks: str) -> Machine:
    return Machine(name, "x86_64", frozenset(has.split()), frozenset(lacks.split()))


def _arm64(name: str, part: int, has: str, lacks: str) -> Machine:
    return Machine(name, "aarch64", frozenset(has.split()), frozenset(lacks.split()), part)


NATIVE = Machine("native", "x86_64")
NEHALEM = _x86("Nehalem", "sse4_2", "avx avx2 fma")
HASWELL = _x86("Haswell", "avx2 fma", "avx512f avx512_vnni avx_vnni amx_int8")
MACHINES = (
    NATIVE,
    NEHALEM,
    HASWELL,
    _arm64("cortex-a72", 0xD08, "asimd", "asimddp i8mm sve"),
    _arm64("neoverse-n1", 0xD0C, "asimd asimddp", "i8mm sve"),
    _arm64("max", 0, "asimd asimddp i8mm sve svei8mm", ""),
)
# Kinds of CPU for which onnxruntime has kernels of its own: (has, lacks).
KINDS = {
    "x86-64 without AVX2": ("sse4_2", "avx2"),
    "AVX2 without VNNI": ("avx2", "avx512f avx_vnni"),
    "AVX-VNNI without AVX512": ("avx_vnni", "avx512f"),
    "AVX512 without VNNI": ("avx512bw", "avx512_vnni avx_vnni"),
    "AVX512 with VNNI": ("avx512bw avx512_vnni", ""),
    "AMX": ("amx_int8", ""),
    "arm64 without dot product": ("asimd", "asimddp"),
    "arm64 with dot product": ("asimddp", "i8mm"),
    "arm64 with i8mm and SVE": ("i8mm sve", ""),
    "arm64 with i8mm, without SVE": ("i8mm", "sve"),
}


def prepare() -> None:
    """Downloads the emulators, and Python, numpy and onnxruntime for arm64, unless that was done before.

    Raises:
        SetupError: the machine is not fit for it, or a download failed.
    """
    if os.uname().machine != "x86_64" or sys.platform != "linux":
        raise SetupError(f"needs Linux on x86-64; this is {sys.platform} on {os.uname().machine}")
    for tool in ("apt-get", "dpkg-deb", "unshare", "mount"):
        if shutil.which(tool) is None:
            raise SetupError(f"needs {tool}, which is not installed; run it on Debian or Ubuntu")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        raise SetupError("needs a mount namespace for arm64; run it as root, in a container with CAP_SYS_ADMIN")
    _once("qemu", "qemu-user-static", lambda folder: _debian_packages("amd64", ("qemu-user-static",), folder))
    _once("arm64", " ".join(_ARM_PACKAGES), lambda folder: _debian_packages("arm64", _ARM_PACKAGES, folder))
    requirements = "".join(_locked(name) for name in _ARM_WHEELS)
    _once("wheels", requirements, lambda folder: _wheels(requirements, folder))


def _once(name: str, source: str, make: Callable[[Path], None]) -> None:
    """Makes a folder in the cache, unless it is there and was made of the same source."""
    folder = CACHE / name
    stamp = folder / ".source"
    wanted = hashlib.sha256(source.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"downloading {name}", flush=True)
    make(folder)
    stamp.write_text(wanted)


def _debian_packages(architecture: str, packages: tuple[str, ...], folder: Path) -> None:
    """Unpacks packages and what they depend on; apt keeps its lists in the folder and leaves the system's alone."""
    state = folder / ".apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
    }
    given = [f"-o{key}={value}" for key, value in options.items()]
    _run("apt-get", *given, "-qq", "update")
    _run("apt-get", *given, "-qq", "-y", "--download-only", "install", *packages)
    for archive in sorted((state / "cache" / "archives").glob("*.deb")):
        _run("dpkg-deb", "-x", str(archive), str(folder))
    shutil.rmtree(state)


def _locked(name: str) -> str:
    """Returns the lines of a package in the lock file, with its hashes."""
    found = re.search(rf"^{name}==.*?(?=^\S|\Z)", LOCK.read_text(), re.MULTILINE | re.DOTALL)
    if found is None:
        raise SetupError(f"{LOCK.relative_to(ROOT)} does not lock {name}")
    return found[0]


def _wheels(requirements: str, folder: Path) -> None:
    listed = folder / ".requirements.txt"
    listed.write_text(requirements)
    platforms = [option for name in _ARM_PLATFORMS for option in ("--platform", name)]
    _run(
        *(str(RUNTIME), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary", ":all:", "--require-hashes", "--python-version", _ARM_PYTHON, *platforms),
        *("--dest", str(folder), "--requirement", str(listed)),
    )
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"{' '.join(command)} failed:\n{done.stderr or done.stdout}")
