"""How fast is it, on what is installed: engines side by side, and our server against the old way over HTTP.

    python benchmarks/latency.py

Any Python from 3.11; what is measured runs in .venv/runtime and .venv/export. Everything takes turns in one run of less
than five minutes. A table goes to the terminal, the figures as JSON and charts as SVG to benchmarks/results.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.harness.engines import Turns, measure_engines
from benchmarks.harness.installed import look
from benchmarks.harness.machine import RESULTS, ROOT, RUNTIME, provenance, quiet_environment
from benchmarks.harness.progress import Progress
from benchmarks.harness.rounds import LoadFailed, Photo, Plan, Step, measure_servers
from benchmarks.reporting.comparison import compare
from benchmarks.reporting.plots import draw
from benchmarks.reporting.records import shortened, write
from benchmarks.reporting.report import tables
from benchmarks.reporting.targets import failures, judge
from serve.printable import ArgumentParser, printable_lines

_PHOTO: Final = ROOT / "tests/data/photos/rocket.jpg"
# Seconds of each measurement, by clients. 64 clients in front of the old way take it seconds to fill and to empty.
_STEPS: Final = (Step("photo", 1, 2.0), Step("photo", 4, 2.5), Step("photo", 16, 3.5), Step("photo", 64, 3.5, rounds=2))


class CannotMeasure(Exception):
    """There is nothing to measure with; the message says what to do."""


def main() -> int:
    """Run the command; the process's exit status."""
    return run_command("latency", _parser(), run)


def run_command(name: str, parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    """What both commands do around their own `run`: options, an earlier result to compare with, errors in words."""
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended then, too
    try:
        olds = [read_result(path) for path in options.compare or []]
        if len(olds) == 2:
            print(printable_lines(compare(*olds)))
            return 0
        result = run(options)
        result["shortened"] = shortened(parser, options)
    except (CannotMeasure, LoadFailed) as error:
        print(printable_lines(f"{name}: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    publish(result, options.output)
    if olds:
        print(printable_lines(compare(olds[0], result)))
    return 1 if failures(result) else 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that is there; raises `CannotMeasure`."""
    began = provenance("latency")
    found = look(options.weights, options.photo)
    for line in found.missing:
        print(printable_lines(f"Left out: {line}"), flush=True)
    if not RUNTIME.is_file():
        raise CannotMeasure("nothing to measure without the server's environment; what to install is said above")
    photos = prepare(options.photo)
    photo, certain = (Photo(Path(photos[name]["file"]), photos[name]["expect"]) for name in ("photo", "certain"))
    plan = plan_of(_STEPS, options)
    turns = Turns(options.rounds, 0.6 * options.scale, answers=plan.answers)
    progress = Progress(turns.weight(len(found.engines)) + plan.weight(found.servers))
    engines, left_out = measure_engines(found.engines, certain.file, certain.expect, turns, progress)
    servers, more = measure_servers(found.servers, found.loop, {"photo": photo}, plan, progress)
    for line in left_out + more:
        progress.say(f"Left out: {line}")
    seconds = progress.end()
    result = {
        **began,
        "seconds": round(seconds, 1),
        "versions": found.versions,
        "baseline": found.baseline,
        "photos": described({"photo": photos["photo"]}),
        "left_out": found.missing + left_out + more,
        "engines": engines,
        "servers": servers,
    }
    return {**result, "targets": judge(result)}


def plan_of(steps: tuple[Step, ...], options: argparse.Namespace, starts: int | None = None) -> Plan:
    """The plan that options ask for; a shorter one is content with fewer answers, too."""
    scaled = tuple(replace(step, seconds=step.seconds * options.scale) for step in steps)
    answers = math.ceil(Plan.answers * min(1.0, options.scale))
    return Plan(scaled, options.rounds, options.starts if starts is None else starts, answers)


def prepare(photo: Path, folder: Path | None = None) -> dict[str, Any]:
    """The photograph's size and right answer, by `prepare.py`; with a folder, the large picture's too."""
    command = [str(RUNTIME), str(Path(__file__).resolve().parent / "harness/prepare.py"), "--photo", str(photo)]
    command += ["--folder", str(folder)] if folder else []
    done = subprocess.run(command, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasure(f"the photograph {photo} cannot be prepared:\n{done.stderr.strip()[-800:]}")
    prepared: dict[str, Any] = json.loads(done.stdout)
    return prepared


def described(photos: dict[str, Any]) -> dict[str, Any]:
    """What a result says of the photographs: their names, but not where they lie on this machine."""
    return {key: {**entry, "file": Path(entry["file"]).name} for key, entry in photos.items()}


def publish(result: dict[str, Any], folder: Path) -> None:
    """Print the tables; write the JSON and the charts."""
    print("\n" + printable_lines(tables(result)), flush=True)
    print(printable_lines(f"{result['seconds']:.0f} s. {write(result, folder, draw(result))}"))


def read_result(path: Path) -> dict[str, Any]:
    """An earlier result; raises `CannotMeasure` where it is none."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["schema"] not in (1, 2) or "machine" not in result:
            raise ValueError("not a result of these benchmarks")
    except OSError as error:
        raise CannotMeasure(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CannotMeasure(f"{path} is not a result of these benchmarks") from error
    return result


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python benchmarks/latency.py",
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_common(parser)
    parser.set_defaults(rounds=5, starts=3)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options that both commands have."""
    parser.add_argument("--photo", type=existing, default=_PHOTO, metavar="FILE", help="JPEG to send")
    parser.add_argument(
        "--weights",
        type=existing,
        default=os.environ.get("WEIGHTS") or None,
        metavar="FILE",
        help="state dict of torchvision's densenet121 for PyTorch; also as WEIGHTS, else from torch's cache",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds; figures are medians over them")
    parser.add_argument("--starts", type=int, metavar="N", help="how often each server is started for the time of it")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="length of every measurement, times X")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="for the JSON and the charts")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="an earlier result: say what moved; two of them: measure nothing and say what moved between them",
    )


def existing(text: str) -> Path:
    """An option that names a file."""
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return path


if __name__ == "__main__":
    sys.exit(main())
