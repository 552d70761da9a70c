"""Tables, comparisons and charts of results."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.harness.figures import spread, summarize
from benchmarks.harness.installed import BASELINE, LOOP, OURS
from benchmarks.harness.load import percentiles
from benchmarks.reporting.charts import Bar, Stack, bar_chart, stack_chart
from benchmarks.reporting.comparison import compare
from benchmarks.reporting.plots import draw
from benchmarks.reporting.report import caveats, describe_run, format_table, starts, tables
from benchmarks.reporting.targets import judge
from tests.benchmarks.results import figures, result, server

SVG = "{http://www.w3.org/2000/svg}"


def test_tables_name_the_cpu_every_server_and_every_target() -> None:
    measured = result({OURS: server(15, 60), BASELINE: server(150, 10)})
    text = tables({**measured, "targets": judge(measured)})
    assert "Test CPU, 2 usable CPUs, with VNNI" in text
    assert "onnxruntime int8" in text
    assert text.count(BASELINE) >= 3
    assert "p50, 1 client, against the baseline" in text
    assert "0.100 (0.100–0.100)   yes" in text


def test_a_missed_target_says_no_and_an_unmeasured_one_says_so() -> None:
    measured = result({OURS: server(50, 60), BASELINE: server(150, 10)})
    lines = tables({**measured, "targets": judge(measured)}).splitlines()
    [missed] = [line for line in lines if line.startswith("p50, 1 client, against the baseline")]
    [unmeasured] = [line for line in lines if "best peer, int8" in line and "p50" in line]
    assert missed.endswith("NO")
    assert "not measured" in unmeasured


def test_memory_is_rss_of_one_process_and_pss_of_several() -> None:
    one, several = server(15, 60), server(15, 60)
    one["idle_mb"], one["loaded_mb"] = ({"rss": mb, "pss": mb - 100, "processes": 1} for mb in (210.0, 230.0))
    several["idle_mb"], several["loaded_mb"] = ({"rss": mb, "pss": mb - 100, "processes": 3} for mb in (510.0, 530.0))
    lines = starts(result({OURS: one, "mosec b, int8": several})).splitlines()
    assert [line.split()[-3:] for line in lines[1:3]] == [["210", "230", "1"], ["410", "430", "3"]]


def test_a_clean_full_result_without_failures_has_no_caveats() -> None:
    measured = result({OURS: server(15, 60)})
    assert caveats(measured) == []
    assert describe_run(measured) == "Test CPU, 2 usable CPUs, with VNNI; 2026-01-02; abc1234"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tree": "dirty"}, "files differed from that commit"),
        ({"tree": "unknown"}, "the commit was not recorded"),
        ({"shortened": ["--scale 0.5", "--rounds 2"]}, "measured with --scale 0.5 --rounds 2"),
        ({"caveats": ["taken over"]}, "taken over"),
        (
            {"left_out": ["mosec: its installation failed", "the baseline needs Flask"]},
            "without mosec, the baseline needs",
        ),
        ({"servers": {OURS: {"clients": {"1": {**figures(15, 60), "wrong": 2}}}}}, "2 errors and wrong answers"),
        ({"servers": {f"{OURS}, fp32": {"clients": {"1": {**figures(1, 6), "errors": 1}}}}}, "1 errors and wrong"),
    ],
)
def test_caveats_of_a_result_are_shown_with_its_source(change: dict[str, Any], said: str) -> None:
    measured = {**result({}), **change}
    assert said in "".join(caveats(measured))
    assert f" – but {said}" in describe_run(measured)
    assert any(said in " ".join(texts_of(svg)) for svg in draw(measured).values())


def test_the_baselines_torch_is_shown_with_the_source() -> None:
    measured = {**result({}), "baseline": {"torch": "2.14.1+cpu", "cuda": None, "megabytes": 700.0}}
    assert "baseline: torch 2.14.1, CPU build" in describe_run(measured)


def test_a_busy_machine_is_reported() -> None:
    ours = server(15, 60)
    assert "Not a quiet machine" not in tables(result({OURS: ours}))
    ours["clients"]["1"]["others_cpu_share"] = spread([0.0, 0.4])
    assert "in 1 of" in tables(result({OURS: ours}))
    assert " – but not a quiet machine: in 1 of" in describe_run(result({OURS: ours}))


def test_columns_line_up() -> None:
    assert format_table([("a", "b"), ("long", "1")]) == "a     b\nlong  1"


def test_rounds_become_medians_with_their_least_and_greatest() -> None:
    cells = [
        {
            "p50_ms": p50,
            "p99_ms": 2 * p50,
            "images_per_s": 1,
            "images": 2,
            "errors": 1,
            "wrong": 0,
            "failures": {"x": 1},
        }
        for p50 in (3, 1, 2)
    ]
    figures = summarize(cells)
    assert figures["p50_ms"] == {"median": 2, "min": 1, "max": 3, "rounds": [3, 1, 2]}
    assert figures["p99_to_p50"]["median"] == 2
    assert (figures["images"], figures["errors"], figures["failures"]) == (6, 3, {"x": 3})
    assert "beyond_ms" not in figures


def cell(times: list[float], **more: Any) -> dict[str, Any]:
    return {**percentiles(times), "ms": times, "images_per_s": 1.0, "images": 1, "errors": 0, "wrong": 0, **more}


def test_a_percentile_that_rounds_are_too_short_for_is_that_of_all_their_answers() -> None:
    figures = summarize([cell([float(number)] * 50) for number in (1, 2, 3)])
    assert figures["p50_ms"]["rounds"] == [1, 2, 3]
    assert figures["p99_ms"] == spread([3])
    assert "p99_to_p50" not in figures


def test_a_percentile_is_omitted_if_all_rounds_are_too_short() -> None:
    figures = summarize([cell([1.0] * 20), cell([2.0] * 20)])
    assert figures["p90_ms"]["rounds"] == [1, 2]
    assert "p99_ms" not in figures
    text = tables(result({OURS: {"clients": {"1": {**figures, "images_per_s": spread([1])}}}}))
    [line] = [line for line in text.splitlines() if line.startswith("ours")]
    assert line.split()[:6] == ["ours", "1", "1.5", "(1.0–2.0)", "1.5", "–"]


def test_a_round_without_one_right_answer_gives_no_times() -> None:
    figures = summarize([{"p50_ms": None, "p99_ms": None, "images_per_s": 0.0, "images": 0, "errors": 9, "wrong": 0}])
    assert "p50_ms" not in figures
    assert figures["images_per_s"]["median"] == 0


def test_a_change_within_the_spread_is_not_reported() -> None:
    old, new = result({OURS: server(15, 60)}), result({OURS: server(15, 60)})
    old["servers"][OURS]["clients"]["1"]["p50_ms"] = spread([14, 15, 17])
    new["servers"][OURS]["clients"]["1"]["p50_ms"] = spread([16, 18, 19])
    text = compare(old, new)
    assert "better" not in text
    assert "worse" not in text


@pytest.mark.parametrize(("before", "after", "word"), [(20, 10, "better"), (10, 20, "worse")])
def test_a_time_that_fell_is_better_and_one_that_rose_is_worse(before: float, after: float, word: str) -> None:
    text = compare(result({OURS: server(before, 60)}), result({OURS: server(after, 60)}))
    [line] = [line for line in text.splitlines() if "ours, clients: 1, p50_ms" in line]
    assert line.endswith(word)
    assert f"{after / before:.3f}" in line


def test_a_rate_that_rose_is_better() -> None:
    text = compare(result({OURS: server(10, 50)}), result({OURS: server(10, 60)}))
    [line] = [line for line in text.splitlines() if "clients: 16, images_per_s" in line]
    assert line.endswith("better")


def test_times_of_different_cpus_are_not_compared_but_ratios_are() -> None:
    old = result({OURS: server(20, 30), BASELINE: server(100, 10)}, cpu="Other CPU")
    new = result({OURS: server(10, 60), BASELINE: server(100, 10)})
    text = compare({**old, "targets": judge(old)}, {**new, "targets": judge(new)})
    assert "Another machine" in text
    assert "p50_ms" not in text
    moved = [line for line in text.splitlines() if line.startswith("target: ")]
    assert len(moved) == 2
    assert all(line.endswith("better") for line in moved)


def test_a_comparison_with_too_few_rounds_or_a_busy_machine_says_so() -> None:
    quiet, busy = result({OURS: server(10, 60)}), result({OURS: server(10, 60)})
    busy["servers"][OURS]["clients"]["1"]["others_cpu_share"] = spread([0.5])
    text = compare(quiet, busy)
    assert "Now: Not a quiet machine" in text
    assert "fewer than 3 rounds" in text  # there was only one start


def test_results_of_only_one_run_are_listed() -> None:
    text = compare(result({OURS: server(10, 60)}), result({OURS: server(10, 60), BASELINE: server(100, 10)}))
    assert "Measured only now: " in text


def test_every_chart_of_a_result_is_well_formed_and_names_the_cpu() -> None:
    ours = server(15, 60)
    ours["clients"]["1"]["stages_ms"] = {"decode": spread([2.0]), "infer": spread([11.0])}
    charts = draw(result({OURS: ours, BASELINE: server(150, 10), LOOP: {"clients": {"16": ours["clients"]["16"]}}}))
    assert set(charts) == {
        "latency-engines.svg",
        "latency-one-client.svg",
        "latency-throughput.svg",
        "latency-stages.svg",
    }
    for svg in charts.values():
        root = ElementTree.fromstring(svg)
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any("Test CPU" in (text or "") for text in texts)
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
        assert "prefers-color-scheme: dark" in svg


def texts_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bars_of(svg: str) -> dict[str, tuple[float, float, float, str]]:
    """The bars of a chart: label → length, ends of the range line, printed value."""
    root = ElementTree.fromstring(svg)
    labels = [text for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "end"]
    bars = [bar for bar in root.iter(f"{SVG}rect") if (bar.get("class") or "").startswith("bar")]
    lines = [line for line in root.iter(f"{SVG}path") if line.get("class") == "spread"]
    values = [text for text in root.iter(f"{SVG}text") if not text.get("text-anchor") and not text.get("class")]
    found = {}
    for label, bar, line, value in zip(labels, bars, lines, values, strict=True):
        start = float(bar.attrib["x"])
        low, high = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", line.attrib["d"]).groups()  # type: ignore[union-attr]
        length = float(bar.attrib["width"])
        found[label.text or ""] = (length, float(low) - start, float(high) - start, value.text or "")
    return found


@pytest.mark.parametrize(("chart", "unit"), [("latency-one-client.svg", "ms"), ("latency-throughput.svg", "images/s")])
def test_a_bar_is_as_long_as_the_median_and_its_line_goes_from_the_least_to_the_greatest(chart: str, unit: str) -> None:
    ours, old = server(10, 60), server(100, 10)
    rounds = {OURS: [20.0, 50.0, 10.0], BASELINE: [90.0, 80.0, 40.0]}
    for name, entry in ((OURS, ours), (BASELINE, old)):
        entry["clients"]["1"]["p50_ms"] = entry["clients"]["16"]["images_per_s"] = spread(rounds[name])
    bars = bars_of(draw(result({OURS: ours, BASELINE: old}))[chart])
    scale = bars[BASELINE][0] / 80
    assert bars[OURS][:3] == pytest.approx((20 * scale, 10 * scale, 50 * scale), abs=0.2)
    assert bars[BASELINE][:3] == pytest.approx((80 * scale, 40 * scale, 90 * scale), abs=0.2)
    assert (bars[OURS][3], bars[BASELINE][3]) == (f"20.0 {unit}", f"80.0 {unit}")
    assert list(bars) == ([OURS, BASELINE] if unit == "ms" else [BASELINE, OURS])  # the best comes first


def test_an_engines_bar_is_its_median_too() -> None:
    measured = result({})
    measured["engines"] = {"int8": {"1": {"p50_ms": spread([30, 10, 20])}, "2": {"p50_ms": spread([5, 10, 40])}}}
    bars = bars_of(draw(measured)["latency-engines.svg"])
    assert [bars[name][3] for name in ("int8, 1 thread", "int8, 2 threads")] == ["20.0 ms", "10.0 ms"]
    assert bars["int8, 1 thread"][0] == pytest.approx(2 * bars["int8, 2 threads"][0], abs=0.2)


def test_only_the_engine_with_the_served_file_has_our_colour() -> None:
    names = ("onnxruntime fp32", "onnxruntime int8", "onnxruntime int8, float input", "OpenVINO int8 (nncf)")
    measured = {**result({}), "engines": {name: {"1": {"p50_ms": spread([5])}} for name in names}}
    root = ElementTree.fromstring(draw(measured)["latency-engines.svg"])
    bars = [bar.attrib["class"] for bar in root.iter(f"{SVG}rect") if bar.attrib["class"].startswith("bar")]
    assert bars == ["bar ", "bar ours", "bar ", "bar "]


def test_a_stack_has_the_medians_of_the_stages_and_ends_at_the_clients_latency() -> None:
    ours = server(20, 60)
    ours["clients"]["1"]["stages_ms"] = {"decode": spread([2, 8, 4]), "infer": spread([11, 10, 15])}
    root = ElementTree.fromstring(draw(result({OURS: ours}))["latency-stages.svg"])
    titled = [part for part in root.iter(f"{SVG}rect") if list(part)]
    assert [part[0].text for part in titled] == ["decode 4.00 ms", "infer 11.0 ms", "rest 5.00 ms"]
    widths = [float(part.attrib["width"]) for part in titled]
    assert [width / sum(widths) for width in widths] == pytest.approx([0.2, 0.55, 0.25], abs=0.01)


def test_charts_of_the_large_photograph_explain_both_ways_of_decoding() -> None:
    large = {"large 1": figures(40, 25), "large 16": figures(300, 50)}
    measured = result({OURS: server(10, 60, **large), "mosec a, int8, draft": {"clients": large}})
    measured["photos"]["large"] = {"bytes": 3_500_000, "width": 4000, "height": 3000}
    charts = draw(measured)
    for chart in ("latency-large-one-client.svg", "latency-large-throughput.svg"):
        assert any(
            "'draft' decode at a reduced scale, 'exact' and the others in full" in text
            for text in texts_of(charts[chart])
        )
        assert {"ours", "Mosec a, int8, draft"} <= set(texts_of(charts[chart]))
    assert not any("draft" in text for text in texts_of(charts["latency-one-client.svg"]))


def test_small_print_goes_over_several_lines_where_one_is_too_short() -> None:
    words = " ".join(f"word{number}" for number in range(60))
    root = ElementTree.fromstring(bar_chart("title", "ms", [Bar("a", 1, 1, 1)], words))
    small = [text for text in root.iter(f"{SVG}text") if text.get("class") == "small" and "word" in (text.text or "")]
    assert " ".join(text.text or "" for text in small) == words
    assert len({text.attrib["y"] for text in small}) == len(small) > 1
    assert all(float(text.attrib["y"]) < float(root.attrib["height"]) for text in small)


def test_labels_with_special_characters_stay_text() -> None:
    svg = bar_chart('a < b & "c"', "ms", [Bar("<script>", 1, 0.5, 2)], "5 > 4")
    ElementTree.fromstring(svg)
    assert "<script>" not in svg


def test_the_longest_bar_and_its_value_fit_the_page() -> None:
    root = ElementTree.fromstring(bar_chart("title", "images/s", [Bar("a", 100, 90, 130), Bar("b", 50, 1, 60)], ""))
    width = float(root.attrib["width"])
    texts = [text for text in root.iter("{http://www.w3.org/2000/svg}text") if (text.text or "").endswith(" images/s")]
    assert len(texts) == 2
    assert all(float(text.attrib["x"]) + 7 * len(text.text or "") < width for text in texts)


def test_a_stack_shows_its_total_and_a_legend() -> None:
    svg = stack_chart("title", "ms", [Stack("ours", {"decode": 2.0, "infer": 10.5})], "")
    texts = [text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "12.5 ms" in texts
    assert {"decode 2.00", "infer 10.5"} <= set(texts)


def test_nothing_measured_gives_no_charts() -> None:
    assert draw({**result({}), "engines": {}}) == {}


def test_the_short_chart_has_each_product_once_in_its_better_configuration_and_says_what_a_and_b_are() -> None:
    servers = {
        OURS: server(10, 100),
        BASELINE: server(90, 10),
        "mosec a, int8": server(12, 60),
        "mosec b, int8": server(20, 90),
        "bentoml a, int8": server(13, 50),
        "bentoml a, fp32": server(5, 200),
    }
    charts = draw({**result(servers), "kind": "peers"})
    quick, many = (texts_of(charts[f"peers-best-{name}.svg"]) for name in ("one-client", "throughput"))
    names = {"ours", "baseline", "Mosec a, int8", "Mosec b, int8", "BentoML a, int8", "BentoML a, fp32"}
    assert [text for text in quick if text in names] == ["ours", "Mosec a, int8", "BentoML a, int8", "baseline"]
    assert [text for text in many if text in names] == ["ours", "Mosec b, int8", "BentoML a, int8", "baseline"]
    for text in (quick, many, texts_of(charts["peers-throughput.svg"])):
        assert "a: one worker with a thread for each CPU; b: a worker for each CPU, with one thread" in " ".join(text)
    assert names <= set(texts_of(charts["peers-throughput.svg"]))
    assert "a: one" not in " ".join(texts_of(draw(result({OURS: server(10, 100)}))["latency-throughput.svg"]))
