"""Figures in the documents: results' files → what stands between `<!-- figures: NAME -->` and `<!-- end -->`.

    python benchmarks/documents.py

Says which documents changed. The commands that measure do the same once they have written a result. NAME is one of
`BLOCKS`, or the result of a command that prints lines, such as `queueing`. Under each block stands where it comes from.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.harness.installed import OLD_WAY, OURS
from benchmarks.harness.machine import RESULTS, ROOT
from benchmarks.reporting.report import aligned, limit_of, megabytes, origin, shown

DOCUMENTS: Final = (
    *(ROOT / name for name in ("README.md", "SECURITY.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
_BLOCK: Final = re.compile(r"^(<!-- figures: (?P<name>\w+) -->\n).*?^(<!-- end -->)$", re.DOTALL | re.MULTILINE)
_BUSY: Final = 0.7  # of the CPUs, so that a peak finds some free
_DOLLARS_A_CPU_HOUR: Final = 0.04
_BYTES_OUT: Final = 4000  # of an answer: 1 KB, and 3 KB of acknowledgements

Result = dict[str, Any]


def main() -> int:
    """Run the command; the process's exit status."""
    print(", ".join(refresh()) or "Every figure is that of the results' files")
    return 0


def refresh(documents: Iterable[Path] = DOCUMENTS) -> list[str]:
    """Write every block anew; names of the documents that this changed."""
    changed = []
    for document in documents:
        old = document.read_text(encoding="utf-8")
        new = filled_in(old)
        if new != old:
            document.write_text(new, encoding="utf-8")
            changed.append(document.name)
    return changed


def filled_in(text: str) -> str:
    """A document with its blocks as the results' files have them."""
    return _BLOCK.sub(lambda found: f"{found[1]}{block(found['name'])}{found[3]}", text)


def block(name: str) -> str:
    """What stands in a block, to the last line's end."""
    return BLOCKS[name]() if name in BLOCKS else _printed(name)


def read(kind: str) -> Result:
    """A result of the project."""
    result: Result = json.loads((RESULTS / f"{kind}.json").read_text(encoding="utf-8"))
    return result


def _printed(kind: str) -> str:
    if not (RESULTS / f"{kind}.json").is_file():
        return f"`python benchmarks/{kind}.py` prints this; the project has no result of it yet.\n"
    result = read(kind)
    return _from(_code(result["printed"]), result)


def _targets() -> str:
    """Each target, and what each command measured for it."""
    results = [read(kind) for kind in ("latency", "peers")]
    rows = [("target", "limit", *(f"`{result['kind']}.py`" for result in results))]
    for name in dict.fromkeys(row["target"] for result in results for row in result["targets"]):
        found = [next((row for row in result["targets"] if row["target"] == name), None) for result in results]
        limit = next(limit_of(row) for row in found if row)
        rows.append((name, limit, *(_verdict(row) for row in found)))
    return _from(_markdown(rows), *results)


def _verdict(row: dict[str, Any] | None) -> str:
    if row is None or row["met"] is None:
        return "–"
    against = f", {row['against']}" if "best peer" in row["target"] else ""
    return f"{'met' if row['met'] else '**missed**'}: {shown(row['measured'], 3)}{against}"


def _latency() -> str:
    """Our server and the old way: times and rates, then start and memory."""
    result = read("latency")
    servers = {name: result["servers"][name] for name in (OURS, OLD_WAY)}
    loads = [("server", "clients", "p50 ms", "p90", "p99", "images/s")]
    for key in ("1", "16"):
        for name, entry in servers.items():
            figures = entry["clients"][key]
            p50, p90, p99 = (shown(figures.get(f"p{percent}_ms"), 1, percent == 50) for percent in (50, 90, 99))
            loads.append((name, key, p50, p90, p99, shown(figures["images_per_s"])))
    starts = [("server", "start to first answer s", "MB idle", "MB after load")]
    for name, entry in servers.items():
        starts.append((name, shown(entry["start_s"], 2), megabytes(entry["idle_mb"]), megabytes(entry["loaded_mb"])))
    return _from(_code([aligned(loads), "", aligned(starts)]), result)


def _peers() -> str:
    """Everybody with the int8 file, and one photograph of ordinary size."""
    return _side_by_side("peers", "1", "16")


def _large() -> str:
    """Everybody with the int8 file, and 12 megapixels: here it matters how a JPEG is decoded."""
    return _side_by_side("peers", "large 1", "large 16")


def _side_by_side(kind: str, one: str, many: str) -> str:
    result = read(kind)
    rows = [("server", "1 client: p50 ms", "16 clients: images/s")]
    for name, entry in result["servers"].items():
        figures = entry["clients"]
        if one in figures and many in figures and not name.endswith("fp32"):
            rows.append((name, shown(figures[one].get("p50_ms")), shown(figures[many].get("images_per_s"))))
    return _from(_code([aligned(rows)]), result)


def _sizes() -> str:
    result = read("sizes")
    ours = result["megabytes"]["ours"]
    rows = [("", "MB", "times ours")]
    rows += [(name, f"{size:.0f}", f"{size / ours:.1f}") for name, size in result["megabytes"].items()]
    return _from(_code([aligned(rows)]), result)


def _sizing() -> str:
    """What two loads take, from the rate with 16 clients: rows of a table."""
    result = read("latency")
    ours, photo = result["servers"][OURS], result["photos"]["photo"]
    cpu_seconds = result["machine"]["usable_cpus"] / ours["clients"]["16"]["images_per_s"]["median"]
    megabytes_each = ours["loaded_mb"]["rss"]
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
    return _from(_markdown(rows + list(zip(names, *columns, strict=True))), result)


def _code(lines: Iterable[str]) -> str:
    return "\n".join(["```", *lines, "```"])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *others])


def _from(content: str, *results: Result) -> str:
    """A block with where its figures come from, which may be several runs."""
    return "\n".join([content, "", *(f"`{result['command']}`: {origin(result)}\\" for result in results)])[:-1] + "\n"


BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "targets": _targets,
    "latency": _latency,
    "peers": _peers,
    "large": _large,
    "sizes": _sizes,
    "sizing": _sizing,
}

if __name__ == "__main__":
    sys.exit(main())
