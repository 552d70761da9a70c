"""The machine and the environments that figures come from, and the environment variables of child processes."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from serve.config.cpus import cpu_features, cpu_model

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "benchmarks/results"
RUNTIME: Final = ROOT / ".venv/runtime/bin/python"
EXPORT: Final = ROOT / ".venv/export/bin/python"
OPENVINO: Final = ROOT / ".venv/openvino/bin/python"  # the runtime with OpenVINO's plug-in

# Turns usage statistics off. LitServe, mosec, MLServer and Flask have none (according to their sources); OpenVINO and
# nncf have no variable for it: `engine_worker.py` and `openvino_engine.py` turn theirs off.
_CHILD_SETTINGS: Final = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime's Linux wheel
    "BENTOML_DO_NOT_TRACK": "True",
    "OTEL_SDK_DISABLED": "true",  # OpenTelemetry, a dependency of BentoML, LitServe and MLServer
    "DO_NOT_TRACK": "1",  # a convention
}
# Settings and thread counts come from command lines only.
_DROPPED_VARIABLES: Final = re.compile(
    r"SERVE_.*|PEER_.*|OMP_.*|MKL_.*|OPENBLAS_.*|PYTHONPATH|PYTHONSTARTUP|WERKZEUG_.*|FLASK_.*"
)

# Runs in the environment that is measured, where pip has the only requirements parser present in all of them.
_MEASURE = """
import importlib.metadata as metadata, json, re, sys
from pip._vendor.packaging.requirements import Requirement
found, waiting = {}, list(sys.argv[1:])
while waiting:
    name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
    if name in found:
        continue
    package = metadata.distribution(name)
    found[name] = sum(file.locate().stat().st_size for file in package.files or () if file.locate().is_file())
    for text in package.requires or ():
        needed = Requirement(text)
        if not needed.marker or needed.marker.evaluate({"extra": ""}):
            try:
                metadata.distribution(needed.name)
            except metadata.PackageNotFoundError:
                continue
            waiting.append(needed.name)
print(json.dumps(found))
"""


def child_environment() -> dict[str, str]:
    """The environment variables for child processes: usage statistics off, no inherited settings."""
    kept = {name: value for name, value in os.environ.items() if not _DROPPED_VARIABLES.fullmatch(name)}
    return {**kept, **_CHILD_SETTINGS}


def usable_cpus() -> int:
    """The number of CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """The CPU, its features that matter for inference, memory and kernel."""
    present = cpu_features()
    memory = re.search(r"^MemTotal:\s*(\d+)", _read(Path("/proc/meminfo")), re.MULTILINE)
    return {
        "cpu": cpu_model(),
        "features": [
            name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if name in present
        ],
        "vnni": bool(present & {"avx512_vnni", "avx_vnni"}),
        "usable_cpus": usable_cpus(),
        "memory_gb": round(int(memory[1]) * 1024 / 1e9, 1) if memory else None,
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }


def describe_cpu(machine: dict[str, Any]) -> str:
    """One line, such as `AMD EPYC, 2 usable CPUs, with VNNI`."""
    count = machine["usable_cpus"]
    vnni = "with" if machine["vnni"] else "without"
    return f"{machine['cpu']}, {count} usable CPU{'s' * (count > 1)}, {vnni} VNNI"


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those `packages` that are installed; empty if `python` does not exist."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    if not python.is_file():
        return {}
    done = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=False)
    found: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


def packages_megabytes(python: Path, packages: Sequence[str]) -> float:
    """Size in MB (10⁶ bytes) of the installed files of these packages and of all their dependencies.

    Raises:
        subprocess.CalledProcessError: One of them is not installed.
    """
    command = [str(python), "-c", _MEASURE, *packages]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    sizes: dict[str, int] = json.loads(done.stdout)
    return sum(sizes.values()) / 1e6


def torch_build(python: Path) -> dict[str, Any]:
    """Which build of torch an environment has: start, memory and size depend on whether it was built for CUDA.

    Raises:
        subprocess.CalledProcessError: torch cannot be imported.
    """
    code = "import torch, json; print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda}))"
    done = subprocess.run(
        [str(python), "-c", code], env=child_environment(), capture_output=True, text=True, check=True
    )
    build: dict[str, Any] = json.loads(done.stdout)
    return {**build, "megabytes": round(packages_megabytes(python, ("torch",)), 1)}


def describe_torch(build: dict[str, Any]) -> str:
    """One phrase, such as `torch 2.14.1, CUDA 13.0 build`."""
    kind = f"CUDA {build['cuda']}" if build["cuda"] else "CPU"
    return f"torch {build['torch'].partition('+')[0]}, {kind} build"


def tree_state(root: Path = ROOT) -> dict[str, str]:
    """The commit that is checked out, and the state of the tree: `clean`, `dirty`, or `unknown` outside of a clone.

    Changes of documents and results do not count, because the commands write those themselves.
    """
    status = ["git", "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results", ":(exclude)*.md"]
    try:
        head, changes = (
            subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["git", "rev-parse", "--short", "HEAD"], status)
        )
    except (OSError, subprocess.CalledProcessError):
        return {"revision": "", "tree": "unknown"}
    return {"revision": head, "tree": "dirty" if changes else "clean"}


def provenance(kind: str) -> dict[str, Any]:
    """What every result begins with; call it before anything is measured."""
    return {
        "schema": 2,
        "kind": kind,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **tree_state(),
        # Folders of this machine are private.
        "command": " ".join(
            [
                "python",
                f"benchmarks/{kind}.py",
                *(Path(word).name if "/" in word else word for word in sys.argv[1:]),
            ]
        ),
        "machine": describe_machine(),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
