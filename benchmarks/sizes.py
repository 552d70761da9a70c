"""How much has to be shipped to serve: our container image beside images of the peers and of the old way.

    python benchmarks/sizes.py --weights densenet121.pth

Ours is the image itself, as the Docker engine tells it. The others are the base image with the packages that each
server needs, as they are installed here, and the same model file (the old way: the weights); what building would add
besides is left out. Writes sizes.json and sizes.svg to benchmarks/results.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.charts import Bar, bar_chart
from benchmarks.machine import EXPORT, ROOT, quiet_environment
from benchmarks.peer_catalogue import environment_of
from serve.command_line import ArgumentParser, printable_lines

# What each server imports itself; what those need in turn is found out from their metadata.
OLD_WAY = ("flask", "torch", "torchvision", "pillow")
PEERS = {
    "litserve": ("litserve", "onnxruntime", "pillow"),
    "bentoml": ("bentoml", "onnxruntime", "pillow"),
    "mlserver": ("mlserver", "onnxruntime", "pillow"),
    "mosec": ("mosec", "onnxruntime", "pillow"),
    "openvino": ("openvino", "pillow"),
}
# Runs in the environment that is measured; pip brings the one parser of requirements that is in all of them.
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


def main() -> int:
    """Run the command; the process's exit status."""
    parser = ArgumentParser(prog="python benchmarks/sizes.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--image", default="densenet-server", help="ours (default: %(default)s)")
    parser.add_argument("--base", default="python:3.11-slim", help="of the others (default: %(default)s)")
    parser.add_argument("--weights", type=Path, required=True, help="state dict that the old way serves")
    parser.add_argument("--cpu-torch", type=Path, metavar="PYTHON", help="of an environment with torch's CPU build")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    options = parser.parse_args()
    try:
        ours, base = image_megabytes(options.image), image_megabytes(options.base)
    except (OSError, subprocess.CalledProcessError) as error:
        print(printable_lines(f"sizes: {getattr(error, 'stderr', '') or error}".strip()), file=sys.stderr)
        return 2
    model = (ROOT / "models" / "densenet121.int8.onnx").stat().st_size / 1e6
    weights = options.weights.stat().st_size / 1e6
    rows: dict[str, float] = {"ours": ours}
    for name, packages in PEERS.items():
        if environment_of(name).is_file():
            rows[name] = base + model + packages_megabytes(environment_of(name), packages)
    if options.cpu_torch:
        rows["old way, torch's CPU build"] = base + weights + packages_megabytes(options.cpu_torch, OLD_WAY)
    rows["old way, torch as pip takes it"] = base + weights + packages_megabytes(EXPORT, OLD_WAY)
    for name, megabytes in rows.items():
        print(f"{name:<32}{megabytes:>8.0f} MB{megabytes / ours:>8.1f} times")
    report = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "base_mb": base, "megabytes": rows}
    (options.output / "sizes.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "sizes.svg").write_text(draw(report))
    print(printable_lines(f"Written: sizes.json, sizes.svg in {options.output}"))
    return 0


def image_megabytes(name: str) -> float:
    """Size of an image that the Docker engine has."""
    command = [*os.environ.get("DOCKER", "docker").split(), "image", "inspect", "--format", "{{.Size}}", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e6


def packages_megabytes(python: Path, packages: tuple[str, ...]) -> float:
    """Size of the installed files of these packages and of all that they need."""
    command = [str(python), "-c", _MEASURE, *packages]
    done = subprocess.run(command, env=quiet_environment(), capture_output=True, text=True, check=True)
    sizes: dict[str, int] = json.loads(done.stdout)
    return sum(sizes.values()) / 1e6


def draw(report: dict[str, Any]) -> str:
    """The chart."""
    bars = [
        Bar(name, size, size, size, "ours" if name == "ours" else "old" if name.startswith("old") else "")
        for name, size in sorted(report["megabytes"].items(), key=lambda row: row[1])
    ]
    others = f"{report['base_mb']:.0f} MB of python:3.11-slim, packages, model"
    small_print = f"Ours: the image. Others: {others}. {report['date'][:10]}"
    return bar_chart("What has to be shipped to serve DenseNet-121", "MB", bars, small_print, note="MB, uncompressed")


if __name__ == "__main__":
    sys.exit(main())
