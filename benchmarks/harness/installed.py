"""Finds what can be measured here; for what is missing, one line that says how to get it."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.engines import Engine
from benchmarks.harness.machine import (
    EXPORT,
    OPENVINO,
    ROOT,
    RUNTIME,
    child_environment,
    describe_machine,
    describe_torch,
    torch_build,
    usable_cpus,
    versions,
)
from benchmarks.harness.servers import ServerSpec
from benchmarks.harness.workers import WorkerSpec

# Names of servers in results, tables and charts.
OURS: Final = "ours"
OURS_FP32: Final = "ours, fp32"
OURS_EXACT: Final = "ours, exact"
OURS_OPENVINO: Final = "ours, OpenVINO"
PLUG_IN: Final = "onnxruntime int8, OpenVINO plug-in"  # as an engine without a server
BASELINE: Final = "baseline"  # Flask's development server with PyTorch
LOOP: Final = "loop without HTTP"

_MODEL_FP32: Final = ROOT / "models/densenet121.onnx"
_MODEL_INT8: Final = ROOT / "models/densenet121.int8.onnx"
_MODEL_QDQ: Final = ROOT / "models/densenet121.qdq.onnx"
_CACHED_WEIGHTS: Final = "hub/checkpoints/densenet121-a639ec97.pth"
_INSTALL: Final = "python3 requirements/install.py"


@dataclass
class Installed:
    """What can be measured.

    Attributes:
        versions: Of packages, by environment.
        baseline: Which build of torch the baseline uses.
        missing: A line for the user for everything that is missing.
    """

    engines: list[Engine] = field(default_factory=list)
    servers: list[ServerSpec] = field(default_factory=list)
    loop: WorkerSpec | None = None
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def find_installed(weights: Path | None, photo: Path) -> Installed:
    """Find environments, models and weights.

    Args:
        weights: The state dict the user named; None looks in torch's cache.
        photo: What the loop classifies first.
    """
    found = Installed()
    if not RUNTIME.is_file():
        found.missing.append(f"the server and onnxruntime: {_INSTALL} .venv/runtime requirements/runtime.txt")
    else:
        found.versions["runtime"] = versions(
            RUNTIME, ["onnxruntime", "numpy", "pillow", "starlette", "uvicorn", "httptools"]
        )
        found.servers.append(our_server())
        arguments = ("-m", "benchmarks.harness.loop_worker", "--workers", str(usable_cpus()), "--photo", str(photo))
        found.loop = WorkerSpec(LOOP, RUNTIME, arguments)
        for name, model in (("onnxruntime fp32", _MODEL_FP32), ("onnxruntime int8", _MODEL_INT8)):
            if model.is_file():
                found.engines.append(Engine(name, RUNTIME, "onnxruntime", model))
            else:
                found.missing.append(f"{name}: models/{model.name} is missing; make export WEIGHTS=densenet121.pth")
        _find_openvino(found)
    _find_torch(found, weights)
    return found


def _find_openvino(found: Installed) -> None:
    """Find the plug-in that our server runs on CPUs with AMX; elsewhere the server is told to."""
    have = versions(OPENVINO, ["onnxruntime", "onnxruntime-ep-openvino"])
    if "onnxruntime-ep-openvino" not in have:
        found.missing.append(f"{OURS_OPENVINO}: {_INSTALL} .venv/openvino requirements/openvino.txt (Linux on x86-64)")
    elif not _MODEL_QDQ.is_file():
        found.missing.append(
            f"{OURS_OPENVINO}: models/{_MODEL_QDQ.name} is missing; make export WEIGHTS=densenet121.pth"
        )
    elif not describe_machine()["vnni"]:
        found.missing.append(f"{OURS_OPENVINO}: it is not used on CPUs without VNNI")
    else:
        found.versions["openvino plug-in"] = have
        found.engines.append(Engine(PLUG_IN, OPENVINO, "plug-in", _MODEL_QDQ))
        flags = ("--engine", "openvino", "--engine-cache", str(ROOT / "build/benchmarks/engine-cache"))
        found.servers.append(our_server(OURS_OPENVINO, *flags, python=OPENVINO))


def our_server(name: str = OURS, *flags: str, photos: tuple[str, ...] = (), python: Path = RUNTIME) -> ServerSpec:
    """Our server with its default settings and these flags."""
    command = [str(python), "-m", "serve", "--port", "{port}"]
    help_text = subprocess.run(
        [str(RUNTIME), "-m", "serve", "--help"],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    if "--server-timing" in help_text:
        command += ["--server-timing", "on"]
    shown = [Path(flag).name if Path(flag).is_absolute() else flag for flag in flags]
    settings = " ".join(["as it is by default, one process", *shown])
    return ServerSpec(name, (*command, *flags), card_path="/model", settings=settings, photos=photos)


def _find_torch(found: Installed, weights: Path | None) -> None:
    have = versions(EXPORT, ["torch", "torchvision", "flask", "werkzeug", "pillow"])
    if "torchvision" not in have:
        how = f"{_INSTALL} .venv/export requirements/export.txt requirements/benchmark.txt"
        found.missing.append(f"PyTorch and the baseline: {how}")
        return
    found.versions["export"] = have
    if weights is None and not _cached_weights():
        found.missing.append(
            "PyTorch and the baseline: no weights; name a state dict of torchvision's densenet121: --weights or WEIGHTS"
        )
        return
    try:
        found.baseline = torch_build(EXPORT)
    except subprocess.CalledProcessError as error:
        found.missing.append(f"PyTorch and the baseline: {error.stderr.strip()[-300:]}")
        return
    found.engines.insert(0, Engine("PyTorch eager", EXPORT, "pytorch", weights))
    if "flask" not in have:
        found.missing.append(f"the baseline needs Flask: {_INSTALL} .venv/export requirements/benchmark.txt")
        return
    command = [str(EXPORT), "-m", "benchmarks.baselines.flask_pytorch", "--port", "{port}"]
    command += ["--weights", str(weights)] if weights else []
    settings = f"Flask's development server and PyTorch eager ({describe_torch(found.baseline)}), as they come"
    found.servers.append(ServerSpec(BASELINE, tuple(command), settings=settings))


def _cached_weights() -> bool:
    """Whether torchvision's weights are in torch's cache, so that nothing has to be downloaded."""
    cache = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    return (Path(cache) / _CACHED_WEIGHTS).is_file()
