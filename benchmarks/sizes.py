"""Compare what has to be shipped to serve: our container image, and images of the peers and of the baseline.

    python benchmarks/sizes.py --weights densenet121.pth

Ours is the image's size according to the Docker engine. The others are the base image, the packages that each server
needs, as installed here, and the same model file (for the baseline, the weights), without what a build may add. The
baseline's size depends on its build of torch, which is part of its name. Writes sizes.json and sizes.svg to
benchmarks/results.
"""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

if not __package__:  # started by its path
    import_module("harness.launch").start()

from benchmarks.harness.installed import BASELINE, OURS
from benchmarks.harness.machine import EXPORT, ROOT, describe_torch, packages_megabytes, torch_build
from benchmarks.harness.peer_catalogue import environment_of
from benchmarks.reporting.plots import draw_sizes
from benchmarks.reporting.records import PrintedResult, add_output
from serve.printable import ArgumentParser, printable_lines

# What each server imports; their dependencies are found in their metadata.
BASELINE_PACKAGES = ("flask", "torch", "torchvision", "pillow")
PEERS = {
    "litserve": ("litserve", "onnxruntime", "pillow"),
    "bentoml": ("bentoml", "onnxruntime", "pillow"),
    "mlserver": ("mlserver", "onnxruntime", "pillow"),
    "mosec": ("mosec", "onnxruntime", "pillow"),
    "openvino": ("openvino", "pillow"),
}


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/sizes.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--image", default="densenet-server", help="our image (default: %(default)s)")
    parser.add_argument("--base", default="python:3.11-slim", help="base image of the others (default: %(default)s)")
    parser.add_argument("--weights", type=Path, required=True, help="state dict that the baseline serves")
    parser.add_argument(
        "--torch",
        type=Path,
        nargs="+",
        default=[EXPORT],
        metavar="PYTHON",
        help="Python of environments with Flask and torch, one for each build of torch (default: of .venv/export)",
    )
    add_output(parser)
    options = parser.parse_args()
    printed = PrintedResult("sizes", parser, options)
    try:
        ours, base = image_megabytes(options.image), image_megabytes(options.base)
    except (OSError, subprocess.CalledProcessError) as error:
        print(printable_lines(f"sizes: {getattr(error, 'stderr', '') or error}".strip()), file=sys.stderr)
        return 2
    model = (ROOT / "models" / "densenet121.int8.onnx").stat().st_size / 1e6
    weights = options.weights.stat().st_size / 1e6
    rows: dict[str, float] = {OURS: ours}
    for name, packages in PEERS.items():
        if environment_of(name).is_file():
            rows[name] = base + model + packages_megabytes(environment_of(name), packages)
    for python in options.torch:
        name = f"{BASELINE}, {describe_torch(torch_build(python))}"
        rows[name] = base + weights + packages_megabytes(python, BASELINE_PACKAGES)
    for name, megabytes in rows.items():
        printed.say(f"{name:<42}{megabytes:>8.0f} MB{megabytes / ours:>8.1f} times")
    figures = {"base": options.base, "base_mb": base, "megabytes": rows}
    printed.write({"sizes.svg": draw_sizes({**printed.result, **figures})}, **figures)
    return 0


def image_megabytes(name: str) -> float:
    """Size of a container image in MB (10⁶ bytes).

    Raises:
        OSError: There is no Docker client.
        subprocess.CalledProcessError: The Docker engine does not answer or has no such image.
    """
    command = [*os.environ.get("DOCKER", "docker").split(), "image", "inspect", "--format", "{{.Size}}", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e6


if __name__ == "__main__":
    sys.exit(main())
