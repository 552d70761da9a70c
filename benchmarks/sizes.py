"""How much has to be shipped to serve: our container image beside images of the peers and of the old way.

    python benchmarks/sizes.py --weights densenet121.pth

Ours is the image itself, as the Docker engine tells it. The others are the base image with the packages that each
server needs, as they are installed here, and the same model file (the old way: the weights); what building would add
besides is left out. Which torch the old way has, and so how large it is, is found out and said. Writes sizes.json and
sizes.svg to benchmarks/results.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.harness.machine import EXPORT, ROOT, describe_torch, packages_megabytes, torch_build
from benchmarks.harness.peer_catalogue import environment_of
from benchmarks.reporting.charts import Bar, bar_chart
from benchmarks.reporting.records import Printed, add_output
from benchmarks.reporting.report import origin
from serve.printable import ArgumentParser, printable_lines

# What each server imports itself; what those need in turn is found out from their metadata.
OLD_WAY_NAME = "old way"
OLD_WAY = ("flask", "torch", "torchvision", "pillow")
PEERS = {
    "litserve": ("litserve", "onnxruntime", "pillow"),
    "bentoml": ("bentoml", "onnxruntime", "pillow"),
    "mlserver": ("mlserver", "onnxruntime", "pillow"),
    "mosec": ("mosec", "onnxruntime", "pillow"),
    "openvino": ("openvino", "pillow"),
}


def main() -> int:
    """Run the command; the process's exit status."""
    parser = ArgumentParser(prog="python benchmarks/sizes.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--image", default="densenet-server", help="ours (default: %(default)s)")
    parser.add_argument("--base", default="python:3.11-slim", help="of the others (default: %(default)s)")
    parser.add_argument("--weights", type=Path, required=True, help="state dict that the old way serves")
    parser.add_argument(
        "--torch",
        type=Path,
        nargs="+",
        default=[EXPORT],
        metavar="PYTHON",
        help="of environments with Flask and torch, such as one for each build of it (default: .venv/export's)",
    )
    add_output(parser)
    options = parser.parse_args()
    printed = Printed("sizes", parser, options)
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
    for python in options.torch:
        name = f"{OLD_WAY_NAME}, {describe_torch(torch_build(python))}"
        rows[name] = base + weights + packages_megabytes(python, OLD_WAY)
    for name, megabytes in rows.items():
        printed.say(f"{name:<42}{megabytes:>8.0f} MB{megabytes / ours:>8.1f} times")
    figures = {"base": options.base, "base_mb": base, "megabytes": rows}
    printed.write({"sizes.svg": draw({**printed.result, **figures})}, **figures)
    return 0


def image_megabytes(name: str) -> float:
    """Size of an image that the Docker engine has."""
    command = [*os.environ.get("DOCKER", "docker").split(), "image", "inspect", "--format", "{{.Size}}", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e6


def draw(report: dict[str, Any]) -> str:
    """The chart."""
    bars = [
        Bar(name, size, size, size, "ours" if name == "ours" else "old" if name.startswith("old") else "")
        for name, size in sorted(report["megabytes"].items(), key=lambda row: row[1])
    ]
    others = f"{report['base_mb']:.0f} MB of {report['base']}, packages, model"
    small_print = f"Ours: the image. Others: {others}. {origin(report)}"
    return bar_chart("What has to be shipped to serve DenseNet-121", "MB", bars, small_print, note="MB, uncompressed")


if __name__ == "__main__":
    sys.exit(main())
