"""Draws the charts of results."""

from typing import Any

from benchmarks.harness.figures import Result
from benchmarks.harness.installed import BASELINE, LOOP, OURS, OURS_EXACT, OURS_FP32, OURS_OPENVINO, PLUG_IN
from benchmarks.reporting.charts import Bar, Stack, bar_chart, stack_chart
from benchmarks.reporting.report import describe_run, product_name

_KINDS = {
    OURS: "ours",
    OURS_EXACT: "ours",
    OURS_FP32: "ours",
    OURS_OPENVINO: "ours",
    BASELINE: "baseline",
    LOOP: "limit",
}

_DECODING = "ours and 'draft' decode at a reduced scale, 'exact' and the others in full"
_CONFIGURATIONS = "a: one worker with a thread for each CPU; b: a worker for each CPU, with one thread"


def draw(result: Result) -> dict[str, str]:
    """Draw a result of `latency.py` or `peers.py`; SVG by file name."""
    kind = result["kind"]
    small_print = describe_run(result)
    charts = {}
    if bars := _engine_bars(result):
        charts[f"{kind}-engines.svg"] = bar_chart("DenseNet-121, one image at a time", "ms", bars, small_print)
    for photo, prefix, name in (("photo", "", _photo(result, "photo")), ("large", "large ", _photo(result, "large"))):
        note = _DECODING if photo == "large" else ""
        stem = kind if photo == "photo" else f"{kind}-{photo}"
        for key, figure, unit, title, file in (
            (f"{prefix}1", "p50_ms", "ms", f"POST /upload, one client, {name}: time to the answer (p50)", "one-client"),
            (
                f"{prefix}16",
                "images_per_s",
                "images/s",
                f"POST /upload, 16 clients, {name}: images a second",
                "throughput",
            ),
        ):
            bars = _server_bars(result, key, figure)
            best = _best_bars(bars) if stem == "peers" else []
            for subset, name_of_file in ((bars, f"{stem}-{file}.svg"), (best, f"{stem}-best-{file}.svg")):
                if subset:
                    charts[name_of_file] = bar_chart(title, unit, subset, _explained(subset, small_print), also=note)
    if stacks := _stage_stacks(result):
        title = "Where the time of a request goes, one client"
        charts[f"{kind}-stages.svg"] = stack_chart(title, "ms", stacks, small_print)
    return charts


def draw_sizes(result: Result) -> str:
    """Draw a result of `sizes.py`."""
    bars = [
        Bar(product_name(name), size, size, size, _KINDS.get(name.partition(",")[0], ""))
        for name, size in sorted(result["megabytes"].items(), key=lambda row: row[1])
    ]
    others = f"{result['base_mb']:.0f} MB of {result['base']}, packages, model"
    small_print = f"Ours: the image. Others: {others}. {describe_run(result)}"
    return bar_chart("What has to be shipped to serve DenseNet-121", "MB", bars, small_print, note="MB, uncompressed")


def _best_bars(bars: list[Bar]) -> list[Bar]:
    """Our server, the baseline and each peer's better configuration with the int8 file; `bars` have the best first."""
    kept: dict[str, Bar] = {}
    for bar in bars:
        product, _, variant = bar.label.partition(" ")
        if bar.label in (OURS, OURS_OPENVINO, BASELINE) or variant in ("a, int8", "b, int8"):
            kept.setdefault(bar.label if product.startswith(OURS) else product, bar)
    return list(kept.values()) if len(kept) > 2 else []


def _explained(bars: list[Bar], small_print: str) -> str:
    """The small print, after what `a` and `b` mean where they are shown."""
    shown = any(bar.label.partition(" ")[2].startswith(("a,", "b,")) for bar in bars)
    return f"{_CONFIGURATIONS}. {small_print}" if shown else small_print


def _photo(result: Result, name: str) -> str:
    photo = result.get("photos", {}).get(name)
    if not photo:
        return ""
    megapixels = photo["width"] * photo["height"] / 1e6
    size = f"{photo['bytes'] / 1e6:.1f} MB" if photo["bytes"] >= 1e6 else f"{photo['bytes'] // 1000} KB"
    return f"{megapixels:.0f}-megapixel JPEG" if megapixels >= 2 else f"{size} JPEG"


def _engine_bars(result: Result) -> list[Bar]:
    bars = []
    for name, threads in result.get("engines", {}).items():
        for count, figures in threads.items():
            label = f"{name}, {count} thread{'s' * (count != '1')}"
            bars.append(_bar(label, figures["p50_ms"], "ours" if name in ("onnxruntime int8", PLUG_IN) else ""))
    return bars


def _server_bars(result: Result, key: str, figure: str) -> list[Bar]:
    bars = []
    for name, entry in result.get("servers", {}).items():
        found = entry["clients"].get(key, {}).get(figure)
        if found:
            bars.append(_bar(product_name(name), found, _KINDS.get(name, "")))
    bars.sort(key=lambda bar: bar.value, reverse=figure != "p50_ms")
    return bars if any(bar.kind != "limit" for bar in bars) else []


def _bar(label: str, figure: dict[str, Any], kind: str) -> Bar:
    return Bar(label, figure["median"], figure["min"], figure["max"], kind)


def _stage_stacks(result: Result) -> list[Stack]:
    """The stages with one client; with more, nearly all of the time is spent in the queue."""
    stacks = []
    for name, entry in result.get("servers", {}).items():
        figures = entry["clients"].get("1", {})
        if "stages_ms" not in figures:
            continue
        parts = {stage: found["median"] for stage, found in figures["stages_ms"].items()}
        rest = max(0.0, figures["p50_ms"]["median"] - sum(parts.values()))
        stacks.append(Stack(product_name(name), {**parts, "rest": rest}))
    return stacks
