"""What is there to be measured, and for what is not, one line that says how to get it."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.engines import Engine
from benchmarks.harness.machine import (
    EXPORT,
    ROOT,
    RUNTIME,
    describe_torch,
    quiet_environment,
    torch_build,
    usable_cpus,
    versions,
)
from benchmarks.harness.servers import Contender
from benchmarks.harness.workers import WorkerSpec

OURS: Final = "ours"
OURS_FP32: Final = "ours, fp32"
OURS_EXACT: Final = "ours, exact"
OLD_WAY: Final = "old way"
LOOP: Final = "loop without HTTP"

_MODEL_FP32: Final = ROOT / "models/densenet121.onnx"
_MODEL_INT8: Final = ROOT / "models/densenet121.int8.onnx"
_CACHED_WEIGHTS: Final = "hub/checkpoints/densenet121-a639ec97.pth"
_INSTALL: Final = "python3 requirements/install.py"


@dataclass
class Installed:
    """What `look` found. baseline: which torch the old way has. missing: what was not found, each a line for
    the user.
    """

    engines: list[Engine] = field(default_factory=list)
    servers: list[Contender] = field(default_factory=list)
    loop: WorkerSpec | None = None
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def look(weights: Path | None, photo: Path) -> Installed:
    """Find environments, models and weights. weights: as given by the user, or None to look in torch's cache."""
    found = Installed()
    if not RUNTIME.is_file():
        found.missing.append(f"the server and onnxruntime: {_INSTALL} .venv/runtime requirements/runtime.txt")
    else:
        found.versions["runtime"] = versions(
            RUNTIME, ["onnxruntime", "numpy", "pillow", "starlette", "uvicorn", "python-multipart", "httptools"]
        )
        found.servers.append(our_server())
        count = usable_cpus()
        arguments = ("--workers", str(count), "--photo", str(photo))
        found.loop = WorkerSpec(LOOP, RUNTIME, "loop_worker.py", arguments)
        for name, model in (("onnxruntime fp32", _MODEL_FP32), ("onnxruntime int8", _MODEL_INT8)):
            if model.is_file():
                found.engines.append(Engine(name, RUNTIME, "onnxruntime", model))
            else:
                found.missing.append(f"{name}: models/{model.name} is not there; make export WEIGHTS=densenet121.pth")
    _look_for_torch(found, weights)
    return found


def our_server(name: str = OURS, *flags: str, photos: tuple[str, ...] = ()) -> Contender:
    """Our server as it is by default, but for the flags."""
    command = [str(RUNTIME), "-m", "serve", "--port", "{port}"]
    help_text = subprocess.run(
        [str(RUNTIME), "-m", "serve", "--help"],
        cwd=ROOT,
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    if "--server-timing" in help_text:
        command += ["--server-timing", "on"]
    settings = " ".join(["as it is by default, one process", *flags])
    return Contender(name, (*command, *flags), card_path="/model", settings=settings, photos=photos)


def _look_for_torch(found: Installed, weights: Path | None) -> None:
    have = versions(EXPORT, ["torch", "torchvision", "flask", "werkzeug", "pillow"])
    if "torchvision" not in have:
        how = f"{_INSTALL} .venv/export requirements/export.txt requirements/benchmark.txt"
        found.missing.append(f"PyTorch and the old way: {how}")
        return
    found.versions["export"] = have
    if weights is None and not _cached_weights():
        found.missing.append(
            "PyTorch and the old way: no weights; name a state dict of torchvision's densenet121: --weights or WEIGHTS"
        )
        return
    try:
        found.baseline = torch_build(EXPORT)
    except subprocess.CalledProcessError as error:
        found.missing.append(f"PyTorch and the old way: {error.stderr.strip()[-300:]}")
        return
    found.engines.insert(0, Engine("PyTorch eager", EXPORT, "pytorch", weights))
    if "flask" not in have:
        found.missing.append(f"the old way needs Flask: {_INSTALL} .venv/export requirements/benchmark.txt")
        return
    script = Path(__file__).resolve().parents[1] / "baselines/flask_pytorch.py"
    command = [str(EXPORT), str(script), "--port", "{port}", *(["--weights", str(weights)] if weights else [])]
    settings = f"Flask's development server and PyTorch eager ({describe_torch(found.baseline)}), as they come"
    found.servers.append(Contender(OLD_WAY, tuple(command), settings=settings))


def _cached_weights() -> bool:
    """Whether torchvision's own weights lie in torch's cache, so that nothing is downloaded."""
    cache = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    return (Path(cache) / _CACHED_WEIGHTS).is_file()
