"""What `latency.py` and `peers.py` have in common: options, comparison with earlier results, errors, output."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.errors import CannotMeasure, LoadFailed
from benchmarks.harness.machine import RESULTS, ROOT
from benchmarks.reporting.comparison import compare
from benchmarks.reporting.plots import draw
from benchmarks.reporting.records import shortened, write
from benchmarks.reporting.report import tables
from benchmarks.reporting.targets import failures
from serve.printable import printable_lines

_PHOTO: Final = ROOT / "tests/data/photos/rocket.jpg"


def run_command(name: str, parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    """Parse the options, measure with `run`, publish and compare.

    Returns:
        The exit status: 1 if nothing could be measured or our server gave errors or wrong answers.
    """
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped then, too
    try:
        earlier = [load_result(path) for path in options.compare or []]
        if len(earlier) == 2:
            print(printable_lines(compare(*earlier)))
            return 0
        result = run(options)
        result["shortened"] = shortened(parser, options)
    except (CannotMeasure, LoadFailed) as error:
        print(printable_lines(f"{name}: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    publish(result, options.output)
    if earlier:
        print(printable_lines(compare(earlier[0], result)))
    return 1 if failures(result) else 0


def publish(result: dict[str, Any], folder: Path) -> None:
    """Print the tables; write the JSON and the charts."""
    print("\n" + printable_lines(tables(result)), flush=True)
    print(printable_lines(f"{result['seconds']:.0f} s. {write(result, folder, draw(result))}"))


def load_result(path: Path) -> dict[str, Any]:
    """Read an earlier result.

    Raises:
        CannotMeasure: The file cannot be read or is not a result.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["schema"] not in (1, 2) or "machine" not in result:
            raise ValueError("not a result of these benchmarks")
    except OSError as error:
        raise CannotMeasure(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CannotMeasure(f"{path} is not a result of these benchmarks") from error
    return result


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that all commands with servers have."""
    parser.add_argument("--photo", type=existing_file, default=_PHOTO, metavar="FILE", help="JPEG to send")
    parser.add_argument(
        "--weights",
        type=existing_file,
        default=os.environ.get("WEIGHTS") or None,
        metavar="FILE",
        help="state dict of torchvision's densenet121 for PyTorch; without it $WEIGHTS, else torch's cache",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds; figures are medians over them")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="multiply all measurements' length by X")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="for the JSON and the charts")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="an earlier result: measure, then print what changed; two of them: only print what changed between them",
    )


def existing_file(text: str) -> Path:
    """An option's value that names a file.

    Raises:
        argparse.ArgumentTypeError: There is no such file.
    """
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return path
