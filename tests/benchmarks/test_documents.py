"""Figures in the documents are those of the results' files, with the results' caveats beside them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import queueing
from benchmarks.harness.installed import BASELINE, LOOP, OURS
from benchmarks.harness.machine import RESULTS, ROOT
from benchmarks.reporting import documents
from benchmarks.reporting.documents import BLOCKS, DOCUMENTS, FIGURES, block, fill_blocks, read_result, refresh
from benchmarks.reporting.plots import draw, draw_sizes
from benchmarks.reporting.report import caveats
from benchmarks.reporting.targets import judge
from tests.benchmarks.results import figures, result, server

MARK = re.compile(r"<!-- figures: (.+?) -->$", re.MULTILINE)
SOURCES = {
    "targets": ("latency", "peers"),
    "latency": ("latency",),
    "sizing": ("latency",),
    "peers": ("peers",),
    "large": ("peers",),
    "engines": ("peers",),
}
COMMANDS = ("accuracy", "decoding", "event_loop", "folder", "hot_path", "queueing", "sessions", "worker_processes")


def images_per_s(latency: dict[str, Any]) -> float:
    return latency["servers"][OURS]["clients"]["16"]["images_per_s"]["median"]


def cpu_ms(latency: dict[str, Any]) -> str:
    return f"{1000 * latency['machine']['usable_cpus'] / images_per_s(latency):.0f}"


# Sentences that carry a figure of latency.json.
SENTENCES: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("docs/scaling.md", lambda r: f"These figures follow from {images_per_s(r):.0f} images a second on two CPUs"),
    ("docs/scaling.md", lambda r: f"16 clients), {r['servers'][OURS]['loaded_mb']['pss']:.0f} MB of memory,"),
    ("docs/scaling.md", lambda r: f"replicas with two CPUs at {cpu_ms(r)} ms per image"),
    ("docs/scaling.md", lambda r: f"DenseNet-121 in int8 takes {cpu_ms(r)} ms of a CPU"),
    ("docs/kubernetes.md", lambda r: f"on two CPUs at {images_per_s(r):.0f} images a second"),
    ("docs/serving.md", lambda r: f"is {r['servers'][OURS]['idle_mb']['pss']:.0f} MB after the first response"),
    ("docs/serving.md", lambda r: f"and {r['servers'][OURS]['loaded_mb']['pss']:.0f} MB after 64 clients"),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_agrees_with_the_results(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert fill_blocks(text) == text, "python benchmarks/documents.py writes the blocks anew"
    marks = MARK.findall(text)
    assert set(marks) <= {*BLOCKS, *COMMANDS}
    assert len(marks) == len(re.findall("^<!-- end -->$", text, re.MULTILINE))


@pytest.mark.parametrize(("document", "sentence"), SENTENCES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_sentence_with_a_figure_agrees_with_the_results(
    document: str, sentence: Callable[[dict[str, Any]], str]
) -> None:
    text = re.sub(r"<!-- /?figure\b.*?-->", "", (ROOT / document).read_text(encoding="utf-8"))
    words = " ".join(text.split())
    assert sentence(read_result("latency")) in words


def test_every_result_is_shown_in_a_document() -> None:
    shown = {mark for document in DOCUMENTS for mark in MARK.findall(document.read_text(encoding="utf-8"))}
    kinds = {path.stem for path in RESULTS.glob("*.json")} - {"latency", "peers"}
    assert kinds <= shown
    assert {"targets", "peers", "large", "engines"} <= shown


@pytest.mark.parametrize("kind", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_a_result_is_complete_and_of_a_commit_or_its_blocks_have_caveats(kind: str) -> None:
    """Only results of earlier versions (schema 1) have caveats."""
    doubts = caveats(read_result(kind))
    assert doubts == [] or read_result(kind)["schema"] == 1
    for name in [name for name, kinds in SOURCES.items() if kind in kinds] or [kind]:
        assert all(doubt in block(name) for doubt in doubts)


@pytest.mark.parametrize("kind", ["latency", "peers"])
def test_targets_and_charts_are_those_of_the_figures(kind: str) -> None:
    measured = read_result(kind)
    assert judge(measured) == measured["targets"]
    for name, svg in draw(measured).items():
        assert (RESULTS / name).read_text(encoding="utf-8") == svg


def test_the_chart_of_sizes_is_that_of_the_figures() -> None:
    assert (RESULTS / "sizes.svg").read_text(encoding="utf-8") == draw_sizes(read_result("sizes"))


def test_the_simulation_goes_by_the_rate_that_was_measured_last() -> None:
    assert read_result("queueing")["service_seconds"] == queueing.SERVICE_SECONDS


def test_a_run_of_latency_takes_less_than_five_minutes_as_it_says() -> None:
    assert read_result("latency")["seconds"] < 300


# What a document says of a size in MB, and the figures that it may be, in results' files.
SIZES: list[tuple[str, Callable[[], set[float]]]] = [
    (r"\bimage (?:\w+ ){0,2}?(?:is|weighs|takes) ", lambda: {read_result("sizes")["megabytes"]["ours"]}),
    (r"`?python:3\.11-slim`? (?:is|weighs|takes) ", lambda: {read_result("sizes")["base_mb"]}),
    (
        r"\b(?:baseline|Flask|PyTorch|torch)\b[^.:;|]{0,40}? ",
        lambda: {size for name, size in read_result("sizes")["megabytes"].items() if name.startswith(BASELINE)},
    ),
]
MEGABYTES = r"(?:<!-- figure: \w+ -->)?(\d[\d,]*) MB"


def prose(document: Path) -> str:
    """A document's text in one line, without its blocks."""
    text = documents._BLOCK.sub("", document.read_text(encoding="utf-8"))
    return " ".join(text.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_size_in_a_sentence_is_that_of_the_results(document: Path) -> None:
    for subject, sizes in SIZES:
        for found in re.finditer(subject + MEGABYTES, prose(document)):
            assert int(found[1].replace(",", "")) in {round(size) for size in sizes()}, found[0]


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("The image is 143 MB with the model", 0),
        ("The container image here is <!-- figure: image_mb -->142 MB<!-- /figure -->", 0),
        ("`python:3.11-slim` is 124 MB before", 1),
        ("Flask with PyTorch takes 6,000 MB", 2),
    ],
)
def test_a_size_in_a_sentence_is_found(sentence: str, found: int) -> None:
    assert [bool(re.search(subject + MEGABYTES, sentence)) for subject, _ in SIZES].index(True) == found


def test_a_figure_in_a_sentence_is_filled_in() -> None:
    image = f"{read_result('sizes')['megabytes']['ours']:.0f} MB"
    text = "It is <!-- figure: image_mb -->1 MB<!-- /figure --> large."
    assert fill_blocks(text) == f"It is <!-- figure: image_mb -->{image}<!-- /figure --> large."


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_number_of_a_result(name: str) -> None:
    assert re.fullmatch(r"\d[\d,]*( MB| ms)?", FIGURES[name]())


def test_charts_are_drawn_again_where_they_differ(tmp_path: Path) -> None:
    assert set(documents.redraw(tmp_path)) == {path.name for path in RESULTS.glob("*.svg")} - {"queueing.svg"}
    assert documents.redraw(tmp_path) == []


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    large = {"large 1": figures(40, 25), "large 16": figures(300, 50)}
    latency = {**result({OURS: server(15, 60), BASELINE: server(150, 10)}), "command": "python latency.py"}
    peers = result({OURS: server(15, 60, **large), "mosec a, int8": server(10, 40, **large), LOOP: server(1, 100)})
    made = {"latency": latency, "peers": {**peers, "kind": "peers", "command": "python peers.py"}}
    for measured in made.values():
        measured["targets"] = judge(measured)
    monkeypatch.setattr(documents, "read_result", lambda kind: made[kind])
    return made


def test_missed_and_met_targets_are_shown_with_their_figures(made_up: dict[str, Any]) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block("targets").splitlines() if "|" in line]
    found = {name: cells for name, *cells in rows}
    assert found["target"] == ["limit", "`latency.py`", "`peers.py`"]
    assert found["p50, 1 client, against the baseline"] == ["≤ 0.12", "met: 0.100 (0.100–0.100)", "not measured"]
    best = found["p50, 1 client, against the best peer, int8"]
    assert best == ["≤ 1", "not measured", "**missed**: 1.500 (1.500–1.500), 0 of 5 rounds, Mosec a, int8"]
    assert len(rows) == 2 + len(made_up["peers"]["targets"])


def test_a_block_names_its_run_and_its_caveats(made_up: dict[str, Any]) -> None:
    assert block("latency").endswith("`python latency.py`: Test CPU, 2 usable CPUs, with VNNI; 2026-01-02; abc1234\n")
    made_up["latency"]["tree"] = "dirty"
    for name in ("latency", "targets", "sizing"):
        assert "abc1234 – but files differed from that commit" in block(name)


def test_the_blocks_show_medians_of_who_they_name(made_up: dict[str, Any]) -> None:
    assert re.search(r"^ours +1 +15\.0 \(15\.0–15\.0\)", block("latency"), re.MULTILINE)
    assert re.search(r"^baseline +16 .* 10\.0 \(10\.0–10\.0\)$", block("latency"), re.MULTILINE)
    assert re.search(r"^Mosec a, int8 +40\.0 \(40\.0–40\.0\) +50\.0 \(50\.0–50\.0\)$", block("large"), re.MULTILINE)
    assert re.search(r"^Mosec a, int8 +10\.0 \(10\.0–10\.0\) +40\.0 \(40\.0–40\.0\)$", block("peers"), re.MULTILINE)


def test_the_block_of_engines_has_a_row_for_each_engine_and_number_of_threads(made_up: dict[str, Any]) -> None:
    """Without percentiles: a round may have too few answers for those."""
    made_up["peers"]["engines"]["OpenVINO int8 (nncf)"] = {"1": {"images_per_s": figures(30, 33)["images_per_s"]}}
    assert [re.split("  +", line) for line in block("engines").splitlines()[1:5]] == [
        ["engine", "threads", "p50 ms", "images/s"],
        ["onnxruntime int8", "1", "20.0 (20.0–20.0)", "50.0 (50.0–50.0)"],
        ["onnxruntime int8", "2", "12.0 (12.0–12.0)", "80.0 (80.0–80.0)"],
        ["OpenVINO int8 (nncf)", "1", "–", "33.0 (33.0–33.0)"],
    ]
    assert "`python peers.py`: Test CPU" in block("engines")


def test_the_sizing_of_two_loads_follows_from_the_rate(made_up: dict[str, Any]) -> None:
    """60 a second on two CPUs: a thousand are 33.3 CPUs at work, 47.6 with 70 % in use."""
    text = block("sizing")
    assert "| CPUs at work; with 70% in use | 34; 48 | 386; 552 |" in text
    assert "| replicas of two CPUs | 24 | 276 |" in text
    assert "| network in; out | 0.9 Gbit/s; 4 MB/s | 10.4 Gbit/s; 46 MB/s |" in text
    assert "| $46, or 53 cents a million | $530, or 53 cents a million |" in text


def test_refreshing_changes_blocks_and_nothing_else(made_up: dict[str, Any], tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- figures: latency -->\nold\n<!-- end -->\nafter\n")
    assert refresh([document]) == ["README.md"]
    text = document.read_text()
    assert text.startswith("before\n<!-- figures: latency -->\n```\nserver ")
    assert text.endswith("\n<!-- end -->\nafter\n")
    assert "old\n" not in text
    assert refresh([document]) == []


def test_a_command_without_a_result_is_named() -> None:
    assert block("no_such") == "`python benchmarks/no_such.py` prints this; the project has no result of it yet.\n"
