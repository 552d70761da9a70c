"""Our server beside LitServe, BentoML, MLServer and mosec, and OpenVINO beside onnxruntime as an engine.

    python benchmarks/peers.py --photos DIR

Each peer is installed into .venv/peers/NAME from its lock file, serves the same DenseNet-121 with onnxruntime in the
way its own documentation shows, and is measured in two configurations and with our fp32 and our int8 file. Ours is
always in its one default configuration. Of large pictures there is also each peer with `Image.draft`, which decodes at
a reduced scale as our server does, and our server with `--decode exact`, which decodes in full as the peers do. All
take turns in one run; how long it takes is said at its beginning. A quick look is `--rounds 1 --starts 1 --scale 0.3`.
"""

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.harness.engines import Engine, Turns, measure_engines
from benchmarks.harness.installed import OURS_EXACT, OURS_FP32, Installed, look, our_server
from benchmarks.harness.machine import ROOT, RUNTIME, provenance, quiet_environment, versions
from benchmarks.harness.peer_catalogue import PEERS, environment_of
from benchmarks.harness.progress import Progress
from benchmarks.harness.rounds import Photo, Step, measure_servers
from benchmarks.latency import CannotMeasure, add_common, described, plan_of, prepare, run_command
from benchmarks.reporting.targets import judge
from export.files import sha256_of
from serve.printable import ArgumentParser, printable_lines

_BUILD: Final = ROOT / "build/benchmarks"
_MODEL: Final = ROOT / "models/densenet121.onnx"
# Seconds of each measurement, by photograph and clients.
_INT8_STEPS: Final = (
    Step("photo", 1, 2.5),
    Step("photo", 4, 3.0, rounds=3),
    Step("photo", 16, 4.0),
    Step("photo", 64, 4.0, rounds=3),
    Step("large", 1, 3.0),
    Step("large", 16, 5.0),
)
_FP32_STEPS: Final = (Step("photo", 1, 2.5), Step("photo", 16, 4.0))


def main() -> int:
    """Run the command; the process's exit status."""
    return run_command("peers", _parser(), run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that is there or can be installed; raises `CannotMeasure`."""
    began = provenance("peers")
    found = look(options.weights, options.photo)
    if not RUNTIME.is_file() or not _MODEL.is_file():
        raise CannotMeasure("DenseNet-121 has to be exported first: " + "; ".join(found.missing))
    chosen = [peer for peer in PEERS if peer.name in options.peers and _install(peer.name, options.install, found)]
    for peer in chosen:
        found.versions[peer.name] = versions(peer.python, [*peer.parts, "onnxruntime", "numpy", "pillow"])
    _add_openvino(found, options)
    for line in found.missing:
        print(printable_lines(f"Left out: {line}"), flush=True)

    prepared = prepare(options.photo, _BUILD)
    photos = {name: Photo(Path(entry["file"]), entry["expect"]) for name, entry in prepared.items()}
    certain = photos.pop("certain")
    int8 = [*found.servers, our_server(OURS_EXACT, "--decode", "exact", photos=("large",))]
    int8 += [one for peer in chosen for draft in (False, True) for one in peer.contenders("int8", draft)]
    fp32 = [our_server(OURS_FP32, "--model-variant", "fp32")]
    fp32 += [one for peer in chosen for one in peer.contenders("fp32")]
    int8_plan, fp32_plan = plan_of(_INT8_STEPS, options), plan_of(_FP32_STEPS, options, starts=1)
    turns = Turns(options.rounds, 1.0 * options.scale, answers=int8_plan.answers)
    weight = turns.weight(len(found.engines)) + int8_plan.weight(int8) + fp32_plan.weight(fp32)
    print(f"This will take about {math.ceil(weight / 60)} minutes", flush=True)
    progress = Progress(weight)
    engines, left_out = measure_engines(found.engines, certain.file, certain.expect, turns, progress)
    servers, more = measure_servers(int8, found.loop, photos, int8_plan, progress)
    servers_fp32, still_more = measure_servers(fp32, None, photos, fp32_plan, progress)
    left_out += more + still_more
    for line in left_out:
        progress.say(f"Left out: {line}")
    seconds = progress.end()
    result = {
        **began,
        "seconds": round(seconds, 1),
        "versions": found.versions,
        "baseline": found.baseline,
        "photos": described({name: prepared[name] for name in photos}),
        "left_out": found.missing + left_out,
        "engines": engines,
        "servers": servers | servers_fp32,
    }
    return {**result, "targets": judge(result)}


def _install(name: str, allowed: bool, found: Installed) -> bool:
    """Whether the environment of a peer is there, made from its lock file where it was not."""
    python, lock = environment_of(name), f"requirements/peers/{name}.txt"
    command = ["requirements/install.py", str(python.parent.parent.relative_to(ROOT)), lock]
    if allowed and subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
        found.missing.append(f"{name}: its installation failed; the message is above")
        return False
    if not python.is_file():
        found.missing.append(f"{name}: python3 {' '.join(command)}")
        return False
    return True


def _add_openvino(found: Installed, options: argparse.Namespace) -> None:
    """OpenVINO's engine, with an int8 model made by nncf once for each export."""
    if "openvino" not in options.peers:
        return
    model = _BUILD / f"openvino-{sha256_of(_MODEL)[:12]}.xml"
    if not options.photos and not model.is_file():
        found.missing.append("OpenVINO: nncf calibrates on photographs; name a folder of them with --photos or PHOTOS")
        return
    if not _install("openvino", options.install, found):
        return
    python = environment_of("openvino")
    if not model.is_file():
        print(f"nncf makes OpenVINO's int8 model from {_MODEL.name}; once, some minutes", flush=True)
        script = str(Path(__file__).resolve().parent / "harness/openvino_engine.py")
        command = [str(python), script, "--photos", str(options.photos.resolve()), "--output", str(model)]
        done = subprocess.run(command, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False)
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
    parser.add_argument("--peers", nargs="+", choices=names, default=names, help="which of them")
    parser.add_argument(
        "--photos",
        type=Path,
        default=os.environ.get("PHOTOS") or None,
        metavar="DIR",
        help="photographs on which nncf calibrates OpenVINO's int8 model; also as PHOTOS",
    )
    parser.add_argument(
        "--no-install", dest="install", action="store_false", help="take the environments as they are, make none"
    )
    parser.set_defaults(rounds=5, starts=5)
    return parser


if __name__ == "__main__":
    sys.exit(main())
