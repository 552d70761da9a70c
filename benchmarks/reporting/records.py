"""Writes a command's result to benchmarks/results, and from there the figures into the documents.

Only results of a commit, measured in full and without errors, go there; others go to build/benchmarks/results.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.figures import Result
from benchmarks.harness.machine import RESULTS, ROOT, provenance
from benchmarks.reporting.documents import refresh
from benchmarks.reporting.report import caveats
from serve.printable import printable

_UNOFFICIAL_RESULTS: Final = ROOT / "build/benchmarks/results"
# Options that decide how much is measured.
_AMOUNTS: Final = ("scale", "rounds", "seconds", "clients", "timed", "files", "peers")


def shortened(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The options that made a command measure less than by default, such as `["--scale 0.5"]`."""
    found = []
    for name in _AMOUNTS:
        usual: Any = parser.get_default(name)
        given: Any = getattr(options, name, None)
        if usual is not None and (len(given) < len(usual) if isinstance(usual, list) else given < usual):
            found.append(f"--{name} {' '.join(map(str, given)) if isinstance(given, list) else given}")
    return found


def write(result: Result, folder: Path, charts: Mapping[str, str] = {}) -> str:
    """Write a result's JSON and charts and, if it belongs in benchmarks/results, the documents' figures.

    Returns:
        A line that names what was written, and why if it is not in benchmarks/results.
    """
    reasons = caveats(result)
    refusal = ""
    if reasons and folder.resolve() == RESULTS:
        folder, refusal = _UNOFFICIAL_RESULTS, f"Not for benchmarks/results: {'; '.join(reasons)}. "
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{result['kind']}.json"
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, svg in charts.items():
        (folder / name).write_text(svg, encoding="utf-8")
    documents = refresh() if folder.resolve() == RESULTS else []
    written = ", ".join([file.name, *charts])
    return f"{refusal}Written: {written} in {folder}{''.join(f', {name}' for name in documents)}"


class PrintedResult:
    """The result of a command that prints lines, which are also recorded for the documents."""

    def __init__(self, kind: str, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
        self.result: Result = {**provenance(kind), "shortened": shortened(parser, options), "printed": []}
        self._folder: Path = options.output

    def say(self, line: str = "") -> None:
        """Print and record a line."""
        line = printable(line)
        print(line, flush=True)
        self.result["printed"].append(line)

    def write(self, charts: Mapping[str, str] = {}, **figures: Any) -> None:
        """Write the result with these figures, and charts by file name."""
        self.result |= figures
        print(printable(write(self.result, self._folder, charts)))


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the option `--output`, the folder for results."""
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="for the JSON and the charts")
