"""Tables of a result for the terminal, and the line that says where its figures come from."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.harness.figures import Result
from benchmarks.harness.machine import describe_cpu, describe_torch
from benchmarks.reporting.targets import failures

_DISTURBED = 0.05
# From the names of packages to those of products, as their makers write them.
_PRODUCTS = {"litserve": "LitServe", "bentoml": "BentoML", "mlserver": "MLServer", "mosec": "Mosec"}


def caveats(result: Result) -> list[str]:
    """Reasons to doubt a result; they stand wherever its figures are shown."""
    found = list(result.get("caveats", ()))
    if result["tree"] != "clean":
        found.append("files differed from that commit" if result["tree"] == "dirty" else "the commit was not recorded")
    if result.get("shortened"):
        found.append(f"measured with {' '.join(result['shortened'])}")
    if result.get("left_out"):
        found.append(f"without {', '.join(line.partition(':')[0] for line in result['left_out'])}")
    if count := failures(result):
        found.append(f"{count} errors and wrong answers")
    return found


def describe_run(result: Result) -> str:
    """One line: machine, day, commit, the baseline's torch, and all caveats."""
    parts = [describe_cpu(result["machine"])] if result.get("machine") else []
    parts += [result["date"][:10], result["revision"]]
    if result.get("baseline"):
        parts.append(f"baseline: {describe_torch(result['baseline'])}")
    line = "; ".join(part for part in parts if part)
    doubts = [disturbances(result).replace("Not", "not", 1), *caveats(result)]
    return " – but ".join(filter(None, [line, "; ".join(filter(None, doubts))]))


def tables(result: Result) -> str:
    """All tables of one run."""
    sections = (_heading, disturbances, _engines, loads, starts, _settings, _stages, _targets)
    parts = [section(result) for section in sections]
    return "\n\n".join(part for part in parts if part) + "\n"


def product_name(server: str) -> str:
    """The name of a server in a result as documents show it: `Mosec b, int8` for `mosec b, int8`."""
    package, *rest = server.split(" ", 1)
    return " ".join([_PRODUCTS.get(package, package), *rest])


def format_table(rows: Iterable[Sequence[str]], right_from: int = 1) -> str:
    """Align columns; those from `right_from` on to the right. The first row is the heading."""
    cells = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if column < right_from else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def format_figure(figure: dict[str, Any] | None, digits: int = 1, with_spread: bool = True) -> str:
    """`12.3 (11.9–13.0)`: median, minimum and maximum; a dash if there is no figure."""
    if not figure:
        return "–"
    median, low, high = (format(figure[name], f".{digits}f") for name in ("median", "min", "max"))
    return f"{median} ({low}–{high})" if with_spread else median


def _heading(result: Result) -> str:
    lines = [describe_cpu(result["machine"])]
    model = next((entry["model"] for entry in result.get("servers", {}).values() if entry.get("model")), None)
    if model:
        lines.append(f"{model['name']}, {model['variant']}, sha256 {model['sha256'][:12]}…")
    photos = (f"{name}: {entry['bytes'] // 1000} KB" for name, entry in result.get("photos", {}).items())
    lines.append("; ".join(photos) + "; medians over the rounds (minimum–maximum)")
    return "\n".join(lines)


def disturbances(result: Result) -> str:
    """A warning if other processes used the CPUs during measurements; else empty."""
    cells = [figures for threads in result.get("engines", {}).values() for figures in threads.values()]
    cells += [figures for entry in result.get("servers", {}).values() for figures in entry["clients"].values()]
    shares = [share for figures in cells for share in figures.get("others_cpu_share", {}).get("rounds", [])]
    disturbed = sum(share > _DISTURBED for share in shares)
    if not disturbed:
        return ""
    return (
        f"Not a quiet machine: in {disturbed} of {len(shares)} measurements other processes took more than "
        f"{_DISTURBED:.0%} of the CPUs, at most {max(shares):.0%}"
    )


def _engines(result: Result) -> str:
    if not result.get("engines"):
        return ""
    rows = [("engine", "threads", "p50 ms", "p90", "p99", "images/s", "others' CPU")]
    for name, threads in result["engines"].items():
        for count, figures in threads.items():
            times = (format_figure(figures.get(f"p{percent}_ms"), 1, percent == 50) for percent in (50, 90, 99))
            rate, others = format_figure(figures["images_per_s"]), _share(figures["others_cpu_share"])
            rows.append((name, count, *times, rate, others))
    return format_table(rows)


def loads(result: Result) -> str:
    """Every server with every workload."""
    rows = [("server", "clients", "p50 ms", "p90", "p99", "images/s", "wrong", "errors", "load's CPU", "others' CPU")]
    keys = dict.fromkeys(key for entry in result.get("servers", {}).values() for key in entry["clients"])
    for key in keys:
        for name, entry in result["servers"].items():
            figures = entry["clients"].get(key)
            if not figures:
                continue
            times = (format_figure(figures.get(f"p{percent}_ms"), 1, percent == 50) for percent in (50, 90, 99))
            shares = (_share(figures.get(f"{who}_cpu_share")) for who in ("load", "others"))
            counts = (str(figures[what]) for what in ("wrong", "errors"))
            rows.append((name, key, *times, format_figure(figures.get("images_per_s")), *counts, *shares))
    return format_table(rows) if len(rows) > 1 else ""


def _share(figure: dict[str, Any] | None) -> str:
    return f"{figure['median']:.1%}" if figure else "–"


def starts(result: Result) -> str:
    """Every server's start and memory."""
    rows = [("server", "start to first answer s", "MB idle", "MB after load", "processes")]
    for name, entry in result.get("servers", {}).items():
        if "start_s" in entry:
            memory = (megabytes(entry[when]) for when in ("idle_mb", "loaded_mb"))
            processes = str(entry["loaded_mb"].get("processes", "–"))
            rows.append((name, format_figure(entry["start_s"], 2), *memory, processes))
    return format_table(rows) + "\nMB: RSS of one process; of several, the sum of PSS" if len(rows) > 1 else ""


def _settings(result: Result) -> str:
    rows = [("server", "settings")]
    rows += [(name, entry["settings"]) for name, entry in result.get("servers", {}).items() if entry.get("settings")]
    return format_table(rows, right_from=2) if len(rows) > 1 else ""


def megabytes(memory: dict[str, float]) -> str:
    """A server's memory: RSS of one process; PSS of several, which share pages."""
    if not memory:
        return "–"
    return f"{memory['rss' if memory['processes'] == 1 else 'pss']:.0f}"


def _stages(result: Result) -> str:
    blocks = []
    for name, entry in result.get("servers", {}).items():
        steps = {key: figures for key, figures in entry["clients"].items() if "stages_ms" in figures}
        if not steps:
            continue
        stages = list(dict.fromkeys(stage for figures in steps.values() for stage in figures["stages_ms"]))
        rows = [(f"{name}: medians, ms", *stages, "beyond decode, preprocess, infer")]
        for key, figures in steps.items():
            values = (format_figure(figures["stages_ms"].get(stage), 2, with_spread=False) for stage in stages)
            rows.append((f"{key} clients", *values, format_figure(figures.get("beyond_ms"), 2)))
        blocks.append(format_table(rows))
    return "\n\n".join(blocks)


def format_limit(row: dict[str, Any]) -> str:
    """A target's limit, such as `≤ 0.5`."""
    return ("≤ " if row["at_most"] else "≥ ") + format(row["limit"], "g")


def won(row: dict[str, Any]) -> str:
    """In how many rounds the limit of a target held."""
    return f"{row['won']} of {len(row['measured']['rounds'])} rounds"


def _targets(result: Result) -> str:
    rows = [("target", "limit", "measured", "met?")]
    for row in result.get("targets", []):
        measured = format_figure(row["measured"], 3) if row["measured"] else "not measured"
        met = {True: "yes", False: "NO", None: "–"}[row["met"]]
        if row["measured"] and "best peer" in row["target"]:
            measured += f", {won(row)} against {row['against']}"
        rows.append((row["target"], format_limit(row), measured, met))
    return f"Targets on {describe_cpu(result['machine'])}\n{format_table(rows)}" if len(rows) > 1 else ""
