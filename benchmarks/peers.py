"""Compare our server with LitServe, BentoML, MLServer and mosec, and onnxruntime with OpenVINO as an engine.

    python benchmarks/peers.py --photos DIR

Each peer is installed into .venv/peers/NAME from its lock file, serves the same DenseNet-121 with onnxruntime as its
documentation shows, and is measured in two configurations, with our fp32 and our int8 file. Their int8 file has the
same weights as ours and takes normalised floats, as their documentation shows, where ours takes pixels. Our server
always runs in its default configuration. With large images each peer is also measured with `Image.draft`, which decodes
at a reduced scale as our server does, and our server with `--decode exact`, which decodes in full as the peers do.
Everything is measured in turn, in one run, which prints at its start how long it will take. For a quick run: `--rounds
1 --scale 0.3`.
"""

import argparse
import math
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

if not __package__:  # started by its path
    import_module("harness.launch").start()

from benchmarks.harness.engines import Engine, EnginePlan, measure_engines
from benchmarks.harness.errors import CannotMeasure
from benchmarks.harness.installed import OURS_EXACT, OURS_FP32, Installed, find_installed, our_server
from benchmarks.harness.machine import EXPORT, ROOT, RUNTIME, child_environment, provenance, versions
from benchmarks.harness.peer_catalogue import FLOAT_INPUT, PEERS, environment_of
from benchmarks.harness.photos import describe_photos, prepare_photos
from benchmarks.harness.progress import Progress
from benchmarks.harness.rounds import measure_servers
from benchmarks.harness.workloads import Photo, Workload, plan_of
from benchmarks.reporting.server_command import add_common, run_command
from benchmarks.reporting.targets import judge
from export.files import sha256_of
from serve.printable import ArgumentParser, printable_lines

_BUILD: Final = ROOT / "build/benchmarks"
_MODEL: Final = ROOT / "models/densenet121.onnx"
_MODEL_INT8: Final = ROOT / "models/densenet121.int8.onnx"
# Photograph, clients and seconds of each measurement.
_INT8_WORKLOADS: Final = (
    Workload("photo", 1, 2.5),
    Workload("photo", 4, 3.0, rounds=3),
    Workload("photo", 16, 4.0),
    Workload("photo", 64, 4.0, rounds=3),
    Workload("large", 1, 3.0),
    Workload("large", 16, 5.0),
)
# There is no target for fp32, so five rounds are enough.
_FP32_WORKLOADS: Final = (Workload("photo", 1, 2.5, rounds=5), Workload("photo", 16, 4.0, rounds=5))


def main() -> int:
    """Run the command and return its exit status."""
    return run_command("peers", _parser(), run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that is installed or can be installed.

    Raises:
        CannotMeasure: DenseNet-121 is not exported, or the photograph cannot be read.
        LoadFailed: The load generator failed.
    """
    result = provenance("peers")
    found = find_installed(options.weights, options.photo)
    if not RUNTIME.is_file() or not _MODEL.is_file():
        raise CannotMeasure("DenseNet-121 has to be exported first: " + "; ".join(found.missing))
    chosen = [peer for peer in PEERS if peer.name in options.peers and _install(peer.name, options.install, found)]
    for peer in chosen:
        found.versions[peer.name] = versions(peer.python, [*peer.parts, "onnxruntime", "numpy", "pillow"])
    chosen_int8 = chosen if _add_float_input(found) else []
    _add_openvino(found, options)
    for line in found.missing:
        print(printable_lines(f"Left out: {line}"), flush=True)

    prepared = prepare_photos(options.photo, _BUILD)
    photos = {name: Photo(Path(entry["file"]), entry["expect"]) for name, entry in prepared.items()}
    unambiguous = photos.pop("unambiguous")
    int8 = [*found.servers, our_server(OURS_EXACT, "--decode", "exact", photos=("large",))]
    int8 += [one for peer in chosen_int8 for draft in (False, True) for one in peer.specs("int8", draft)]
    fp32 = [our_server(OURS_FP32, "--model-variant", "fp32")]
    fp32 += [one for peer in chosen for one in peer.specs("fp32")]
    int8_plan, fp32_plan = (
        plan_of(workloads, options.rounds, options.scale) for workloads in (_INT8_WORKLOADS, _FP32_WORKLOADS)
    )
    engine_plan = EnginePlan(options.rounds, 1.0 * options.scale, answers=int8_plan.answers)
    expected_seconds = engine_plan.expected_seconds(len(found.engines))
    expected_seconds += int8_plan.expected_seconds(int8) + fp32_plan.expected_seconds(fp32)
    print(f"This will take about {math.ceil(expected_seconds / 60)} minutes", flush=True)
    progress = Progress(expected_seconds)
    engines, left_out = measure_engines(found.engines, unambiguous.file, unambiguous.expect, engine_plan, progress)
    servers, more = measure_servers(int8, found.loop, photos, int8_plan, progress)
    servers_fp32, still_more = measure_servers(fp32, None, photos, fp32_plan, progress)
    left_out += more + still_more
    for line in left_out:
        progress.say(f"Left out: {line}")
    result |= {
        "seconds": round(progress.end(), 1),
        "versions": found.versions,
        "baseline": found.baseline,
        "photos": describe_photos({name: prepared[name] for name in photos}),
        "left_out": found.missing + left_out,
        "engines": engines,
        "servers": servers | servers_fp32,
    }
    return {**result, "targets": judge(result)}


def _install(name: str, allowed: bool, found: Installed) -> bool:
    """Install a peer from its lock file if `allowed`; return whether its environment exists."""
    python, lock = environment_of(name), f"requirements/peers/{name}.txt"
    command = ["requirements/install.py", str(python.parent.parent.relative_to(ROOT)), lock]
    if allowed and subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
        found.missing.append(f"{name}: its installation failed; the message is above")
        return False
    if not python.is_file():
        found.missing.append(f"{name}: python3 {' '.join(command)}")
        return False
    return True


def _add_float_input(found: Installed) -> bool:
    """Make the peers' int8 file and add it as an engine; return whether it could be made."""
    if not _MODEL_INT8.is_file():  # `find_installed` has told so
        return False
    if not EXPORT.is_file():
        found.missing.append("peers with int8: python3 requirements/install.py .venv/export requirements/export.txt")
        return False
    command = [str(EXPORT), "-m", "benchmarks.harness.float_input", "--model", str(_MODEL_INT8)]
    command += ["--output", str(FLOAT_INPUT)]
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        found.missing.append(f"peers with int8: {done.stderr.strip()[-500:]}")
        return False
    found.engines.append(Engine("onnxruntime int8, float input", RUNTIME, "onnxruntime", FLOAT_INPUT))
    return True


def _add_openvino(found: Installed, options: argparse.Namespace) -> None:
    """Add OpenVINO's engine; nncf makes its int8 model once for each export."""
    if "openvino" not in options.peers:
        return
    model = _BUILD / f"openvino-{sha256_of(_MODEL)[:12]}.xml"
    if not options.photos and not model.is_file():
        found.missing.append(
            "OpenVINO: nncf needs photographs to calibrate on; name a folder of them with --photos or PHOTOS"
        )
        return
    if not _install("openvino", options.install, found):
        return
    python = environment_of("openvino")
    if not model.is_file():
        print(f"nncf makes OpenVINO's int8 model from {_MODEL.name}; this takes some minutes, once", flush=True)
        command = [str(python), "-m", "benchmarks.harness.openvino_engine", "--output", str(model)]
        command += ["--photos", str(options.photos.resolve())]
        done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            found.missing.append(f"OpenVINO: nncf failed: {done.stderr.strip()[-500:]}")
            return
    found.versions["openvino"] = versions(python, ["openvino", "nncf"])
    found.engines.append(Engine("OpenVINO int8 (nncf)", python, "openvino", model))


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python benchmarks/peers.py",
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_common(parser)
    names = [*(peer.name for peer in PEERS), "openvino"]
    parser.add_argument("--peers", nargs="+", choices=names, default=names, help="peers to measure")
    parser.add_argument(
        "--photos",
        type=Path,
        default=os.environ.get("PHOTOS") or None,
        metavar="DIR",
        help="photographs on which nncf calibrates OpenVINO's int8 model; without it $PHOTOS",
    )
    parser.add_argument(
        "--no-install", dest="install", action="store_false", help="use the environments that exist, make none"
    )
    parser.set_defaults(rounds=5)
    return parser


if __name__ == "__main__":
    sys.exit(main())
