"""What people see of a result: tables, what moved since another, charts."""

from xml.etree import ElementTree

import pytest

from benchmarks.charts import Bar, Stack, bar_chart, stack_chart
from benchmarks.comparison import compare
from benchmarks.installed import LOOP, OLD_WAY, OURS
from benchmarks.plots import draw
from benchmarks.report import aligned, tables
from benchmarks.rounds import spread, summarise
from benchmarks.targets import judge
from tests.benchmarks.results import result, server


def test_tables_name_the_cpu_every_server_and_every_target() -> None:
    measured = result({OURS: server(15, 60), OLD_WAY: server(150, 10)})
    text = tables({**measured, "targets": judge(measured)})
    assert "Test CPU, 2 usable CPUs, with VNNI" in text
    assert "onnxruntime int8" in text
    assert text.count(OLD_WAY) >= 3
    assert "p50, 1 client, against the old way" in text
    assert "0.100 (0.100–0.100)   yes" in text


def test_a_missed_target_says_no_and_an_unmeasured_one_says_so() -> None:
    measured = result({OURS: server(50, 60), OLD_WAY: server(150, 10)})
    lines = tables({**measured, "targets": judge(measured)}).splitlines()
    [missed] = [line for line in lines if line.startswith("p50, 1 client, against the old way")]
    [unmeasured] = [line for line in lines if "best peer, int8" in line and "p50" in line]
    assert missed.endswith("NO")
    assert "not measured" in unmeasured


def test_a_machine_that_was_not_quiet_is_told() -> None:
    ours = server(15, 60)
    assert "Not a quiet machine" not in tables(result({OURS: ours}))
    ours["clients"]["1"]["others_cpu_share"] = spread([0.0, 0.4])
    assert "in 1 of" in tables(result({OURS: ours}))


def test_columns_line_up() -> None:
    assert aligned([("a", "b"), ("long", "1")]) == "a     b\nlong  1"


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
    figures = summarise(cells)
    assert figures["p50_ms"] == {"median": 2, "min": 1, "max": 3, "rounds": [3, 1, 2]}
    assert figures["p99_to_p50"]["median"] == 2
    assert (figures["images"], figures["errors"], figures["failures"]) == (6, 3, {"x": 3})
    assert "beyond_ms" not in figures


def test_a_round_without_one_right_answer_gives_no_times() -> None:
    figures = summarise([{"p50_ms": None, "p99_ms": None, "images_per_s": 0.0, "images": 0, "errors": 9, "wrong": 0}])
    assert "p50_ms" not in figures
    assert figures["images_per_s"]["median"] == 0


def test_what_lies_within_the_spread_has_not_moved() -> None:
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
    old = result({OURS: server(20, 30), OLD_WAY: server(100, 10)}, cpu="Other CPU")
    new = result({OURS: server(10, 60), OLD_WAY: server(100, 10)})
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
    assert "fewer than 3 rounds" in text  # a start, of which there was one


def test_what_only_one_of_two_runs_has_is_told() -> None:
    text = compare(result({OURS: server(10, 60)}), result({OURS: server(10, 60), OLD_WAY: server(100, 10)}))
    assert "Measured only now: " in text


def test_every_chart_of_a_result_is_well_formed_and_names_the_cpu() -> None:
    ours = server(15, 60)
    ours["clients"]["1"]["stages_ms"] = {"decode": spread([2.0]), "infer": spread([11.0])}
    charts = draw(result({OURS: ours, OLD_WAY: server(150, 10), LOOP: {"clients": {"16": ours["clients"]["16"]}}}))
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
