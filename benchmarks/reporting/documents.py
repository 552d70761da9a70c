"""Writes the figures of the results' files into the documents.

A document has figures in two forms, which `python benchmarks/documents.py` fills in:

- a block between the lines `<!-- figures: NAME -->` and `<!-- end -->`. NAME is a key of `BLOCKS`, or a command that
  prints lines, such as `queueing`. Each block ends with where its figures come from.
- a figure in a sentence, between `<!-- figure: NAME -->` and `<!-- /figure -->`. NAME is a key of `FIGURES`.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.figures import Result
from benchmarks.harness.installed import BASELINE, OURS
from benchmarks.harness.machine import RESULTS, ROOT
from benchmarks.reporting.plots import draw, draw_sizes
from benchmarks.reporting.report import (
    describe_run,
    format_figure,
    format_limit,
    format_table,
    megabytes,
    product_name,
    won,
)

DOCUMENTS: Final = (
    *(ROOT / name for name in ("README.md", "SECURITY.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
_BLOCK: Final = re.compile(r"^(<!-- figures: (?P<name>\w+) -->\n).*?^(<!-- end -->)$", re.DOTALL | re.MULTILINE)
_FIGURE: Final = re.compile(r"(<!-- figure: (?P<name>\w+) -->)[^<`]*(<!-- /figure -->)")
_BUSY: Final = 0.7  # of the CPUs; the rest is for peaks
_DOLLARS_A_CPU_HOUR: Final = 0.04
_BYTES_OUT: Final = 4000  # for each image: an answer of 1 KB and acknowledgements of 3 KB


def refresh(documents: Iterable[Path] = DOCUMENTS) -> list[str]:
    """Write all figures into the documents; return the names of those that changed."""
    changed = []
    for document in documents:
        old = document.read_text(encoding="utf-8")
        new = fill_blocks(old)
        if new != old:
            document.write_text(new, encoding="utf-8")
            changed.append(document.name)
    return changed


def redraw(folder: Path = RESULTS) -> list[str]:
    """Draw the charts of the results' files into a folder; return the names of those that changed."""
    charts = {"sizes.svg": draw_sizes(read_result("sizes"))}
    for kind in ("latency", "peers"):
        charts |= draw(read_result(kind))
    changed = []
    for name, svg in charts.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != svg:
            path.write_text(svg, encoding="utf-8")
            changed.append(name)
    return changed


def fill_blocks(text: str) -> str:
    """A document's text with the figures of the results' files."""
    text = _FIGURE.sub(lambda found: f"{found[1]}{FIGURES[found['name']]()}{found[3]}", text)
    return _BLOCK.sub(lambda found: f"{found[1]}{block(found['name'])}{found[3]}", text)


def block(name: str) -> str:
    """The contents of a block, with the last line's end."""
    return BLOCKS[name]() if name in BLOCKS else _printed(name)


def read_result(kind: str) -> Result:
    """A result in benchmarks/results. kind: the name of its command."""
    result: Result = json.loads((RESULTS / f"{kind}.json").read_text(encoding="utf-8"))
    return result


def _printed(kind: str) -> str:
    if not (RESULTS / f"{kind}.json").is_file():
        return f"`python benchmarks/{kind}.py` prints this; the project has no result of it yet.\n"
    result = read_result(kind)
    return _with_source(_code(result["printed"]), result)


def _targets() -> str:
    """All targets, and what each command measured for them."""
    results = [read_result(kind) for kind in ("latency", "peers")]
    rows = [("target", "limit", *(f"`{result['kind']}.py`" for result in results))]
    for name in dict.fromkeys(row["target"] for result in results for row in result["targets"]):
        found = [next((row for row in result["targets"] if row["target"] == name), None) for result in results]
        limit = next(format_limit(row) for row in found if row)
        rows.append((name, limit, *(_verdict(row) for row in found)))
    return _with_source(_markdown(rows), *results)


def _verdict(row: dict[str, Any] | None) -> str:
    if row is None or row["met"] is None:
        return "not measured"
    against = f", {won(row)}, {product_name(row['against'])}" if "best peer" in row["target"] else ""
    return f"{'met' if row['met'] else '**missed**'}: {format_figure(row['measured'], 3)}{against}"


def _latency() -> str:
    """Our server and the baseline: times and rates, then start and memory."""
    result = read_result("latency")
    servers = {name: result["servers"][name] for name in (OURS, BASELINE)}
    loads = [("server", "clients", "p50 ms", "p90", "p99", "images/s")]
    for key in ("1", "16"):
        for name, entry in servers.items():
            figures = entry["clients"][key]
            p50, p90, p99 = (format_figure(figures.get(f"p{percent}_ms"), 1, percent == 50) for percent in (50, 90, 99))
            loads.append((name, key, p50, p90, p99, format_figure(figures["images_per_s"])))
    starts = [("server", "start to first answer s", "MB idle", "MB after load")]
    for name, entry in servers.items():
        starts.append(
            (name, format_figure(entry["start_s"], 2), megabytes(entry["idle_mb"]), megabytes(entry["loaded_mb"]))
        )
    return _with_source(_code([format_table(loads), "", format_table(starts)]), result)


def _peers() -> str:
    """All servers with the int8 file, and a photograph of ordinary size."""
    return _side_by_side("peers", "1", "16")


def _large() -> str:
    """All servers with the int8 file, and 12 megapixels, where it matters how a JPEG is decoded."""
    return _side_by_side("peers", "large 1", "large 16")


def _side_by_side(kind: str, one: str, many: str) -> str:
    result = read_result(kind)
    rows = [("server", "1 client: p50 ms", "16 clients: images/s")]
    for name, entry in result["servers"].items():
        figures = entry["clients"]
        if one in figures and many in figures and not name.endswith("fp32"):
            rows.append(
                (
                    product_name(name),
                    format_figure(figures[one].get("p50_ms")),
                    format_figure(figures[many].get("images_per_s")),
                )
            )
    return _with_source(_code([format_table(rows)]), result)


def _engines() -> str:
    """The engines of `peers.py` without a server: onnxruntime, PyTorch and OpenVINO."""
    result = read_result("peers")
    rows = [("engine", "threads", "p50 ms", "images/s")]
    for name, threads in result["engines"].items():
        for count, figures in threads.items():
            rows.append((name, count, format_figure(figures.get("p50_ms")), format_figure(figures["images_per_s"])))
    return _with_source(_code([format_table(rows)]), result)


def _sizes() -> str:
    result = read_result("sizes")
    ours = result["megabytes"]["ours"]
    rows = [("", "MB", "times ours")]
    rows += [(product_name(name), f"{size:.0f}", f"{size / ours:.1f}") for name, size in result["megabytes"].items()]
    return _with_source(_code([format_table(rows)]), result)


def _sizing() -> str:
    """What two loads need, computed from the rate with 16 clients."""
    result = read_result("latency")
    ours, photo = result["servers"][OURS], result["photos"]["photo"]
    cpu_seconds = result["machine"]["usable_cpus"] / ours["clients"]["16"]["images_per_s"]["median"]
    megabytes_each = float(megabytes(ours["loaded_mb"]))
    limit = re.search(r"memory: (\d+)Mi", (ROOT / "deploy/kubernetes/base/deployment.yaml").read_text(encoding="utf-8"))
    limit_each = int(limit[1]) * 2**20 / 1e6 if limit else math.nan
    rows = [("", "a thousand images a second", "a billion a day")]
    columns = []
    for rate in (1000.0, 1e9 / 86_400):
        cpus, given = math.ceil(rate * cpu_seconds), math.ceil(rate * cpu_seconds / _BUSY)
        replicas = math.ceil(given / 2)
        dollars = given * 24 * _DOLLARS_A_CPU_HOUR
        columns.append(
            (
                f"{rate:,.0f}",
                f"{cpus}; {given}",
                f"{replicas}",
                f"{replicas * megabytes_each / 1000:.0f} GB; {replicas * limit_each / 1000:.0f} GB",
                f"{rate * photo['bytes'] * 8 / 1e9:.1f} Gbit/s; {rate * _BYTES_OUT / 1e6:.0f} MB/s",
                f"${dollars:.0f}, or {dollars * 100 / (rate * 86_400 / 1e6):.0f} cents a million",
            )
        )
    names = (
        "images a second, on average",
        f"CPUs at work; with {_BUSY:.0%} in use",
        "replicas of two CPUs",
        "memory that they use; their limits in `deploy/kubernetes`",
        "network in; out",
        f"a day, at ${_DOLLARS_A_CPU_HOUR} for a CPU and hour",
    )
    return _with_source(_markdown(rows + list(zip(names, *columns, strict=True))), result)


def _code(lines: Iterable[str]) -> str:
    return "\n".join(["```", *lines, "```"])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *others])


def _with_source(content: str, *results: Result) -> str:
    """A block's contents, and the command and run that each figure comes from."""
    sources = "\\\n".join(f"`{result['command']}`: {describe_run(result)}" for result in results)
    return f"{content}\n\n{sources}\n"


BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "targets": _targets,
    "latency": _latency,
    "peers": _peers,
    "large": _large,
    "engines": _engines,
    "sizes": _sizes,
    "sizing": _sizing,
}


def _image_mb() -> float:
    size: float = read_result("sizes")["megabytes"]["ours"]
    return size


def _baseline_mb() -> list[float]:
    """The sizes of the baseline with each build of torch, smallest first."""
    sizes = read_result("sizes")["megabytes"]
    return sorted(size for name, size in sizes.items() if name.partition(",")[0] == BASELINE)


def _images_per_s() -> float:
    rate: float = read_result("latency")["servers"][OURS]["clients"]["16"]["images_per_s"]["median"]
    return rate


FIGURES: Final[dict[str, Callable[[], str]]] = {
    "image_mb": lambda: f"{_image_mb():.0f} MB",
    "base_mb": lambda: f"{read_result('sizes')['base_mb']:.0f} MB",
    "smallest_baseline_mb": lambda: f"{_baseline_mb()[0]:,.0f} MB",
    "largest_baseline_mb": lambda: f"{_baseline_mb()[-1]:,.0f} MB",
    "images_per_s": lambda: f"{_images_per_s():.0f}",
    "cpu_ms": lambda: f"{1000 * read_result('latency')['machine']['usable_cpus'] / _images_per_s():.0f} ms",
    "idle_mb": lambda: f"{megabytes(read_result('latency')['servers'][OURS]['idle_mb'])} MB",
    "loaded_mb": lambda: f"{megabytes(read_result('latency')['servers'][OURS]['loaded_mb'])} MB",
    "second_session_mb": lambda: f"{read_result('sessions')['second_session_mb']:.0f} MB",
}
