"""What a command found out → a file in benchmarks/results, and from there the figures in the documents.

Only what was measured in full, of a commit, goes there; everything else goes to build/benchmarks/results.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.documents import refresh
from benchmarks.harness.machine import RESULTS, ROOT, provenance
from benchmarks.reporting.report import reservations
from serve.printable import printable

_ASIDE: Final = ROOT / "build/benchmarks/results"
# Options that say how much is measured.
_AMOUNTS: Final = ("scale", "rounds", "starts", "seconds", "clients", "timed", "files", "peers")

Result = dict[str, Any]


def shortened(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """Options by which less was measured than the command measures by itself: `["--scale 0.5"]`."""
    found = []
    for name in _AMOUNTS:
        usual: Any = parser.get_default(name)
        given: Any = getattr(options, name, None)
        if usual is not None and (len(given) < len(usual) if isinstance(usual, list) else given < usual):
            found.append(f"--{name} {' '.join(map(str, given)) if isinstance(given, list) else given}")
    return found


def write(result: Result, folder: Path, charts: Mapping[str, str] = {}) -> str:
    """Write a result's JSON and charts, and where it is one to go by, the documents' figures. Says what was written."""
    reasons = reservations(result)
    said = ""
    if reasons and folder.resolve() == RESULTS:
        folder, said = _ASIDE, f"Not for benchmarks/results: {'; '.join(reasons)}. "
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{result['kind']}.json"
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, svg in charts.items():
        (folder / name).write_text(svg, encoding="utf-8")
    documents = refresh() if folder.resolve() == RESULTS else []
    return f"{said}Written: {', '.join([file.name, *charts])} in {folder}{''.join(f', {name}' for name in documents)}"


class Printed:
    """The result of a command that prints lines: what it says is printed, and kept for the documents."""

    def __init__(self, kind: str, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
        self.result: Result = {**provenance(kind), "shortened": shortened(parser, options), "printed": []}
        self._folder: Path = options.output

    def say(self, line: str = "") -> None:
        line = printable(line)
        print(line, flush=True)
        self.result["printed"].append(line)

    def write(self, charts: Mapping[str, str] = {}, **figures: Any) -> None:
        self.result |= figures
        print(printable(write(self.result, self._folder, charts)))


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that says where a result goes."""
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="for the JSON and the charts")
