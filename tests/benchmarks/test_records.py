"""Only results of a commit, measured in full and without failures, go to the project's results."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import latency
from benchmarks.harness.installed import OURS
from benchmarks.reporting import records
from benchmarks.reporting.records import PrintedResult, add_output, shortened, write
from benchmarks.reporting.server_command import run_command
from tests.benchmarks.results import figures, result, server


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Stand-ins for benchmarks/results and build/benchmarks/results; documents are not changed."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(records, "_UNOFFICIAL_RESULTS", tmp_path / "aside")
    monkeypatch.setattr(records, "refresh", lambda: ["README.md"])
    return tmp_path / "results", tmp_path / "aside"


def test_a_result_to_go_by_is_written_with_its_charts_and_into_the_documents(folders: tuple[Path, Path]) -> None:
    said = write(result({}), folders[0], {"latency.svg": "<svg/>"})
    assert json.loads((folders[0] / "latency.json").read_text()) == result({})
    assert (folders[0] / "latency.svg").read_text() == "<svg/>"
    assert said == f"Written: latency.json, latency.svg in {folders[0]}, README.md"


@pytest.mark.parametrize(
    "change",
    [
        {"tree": "dirty"},
        {"tree": "unknown"},
        {"shortened": ["--scale 0.3"]},
        {"servers": {OURS: {"clients": {"1": {**figures(1, 1), "wrong": 1}}}}},
    ],
)
def test_any_other_is_laid_aside_and_the_documents_stay(folders: tuple[Path, Path], change: dict[str, Any]) -> None:
    said = write({**result({}), **change}, folders[0])
    assert not folders[0].exists()
    assert (folders[1] / "latency.json").is_file()
    assert said.startswith("Not for benchmarks/results: ")
    assert "README.md" not in said


def test_another_folder_takes_any_result(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write({**result({}), "tree": "dirty"}, tmp_path / "mine")
    assert (tmp_path / "mine/latency.json").is_file()
    assert not folders[1].exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], []),
        (["--rounds", "9", "--scale", "2"], []),
        (["--rounds", "2", "--scale", "0.3"], ["--scale 0.3", "--rounds 2"]),
        (["--peers", "mosec"], ["--peers mosec"]),
    ],
)
def test_options_that_measure_less_than_usual_are_noted(arguments: list[str], found: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peers", nargs="+", default=["mosec", "litserve"])
    parser.set_defaults(rounds=5)
    assert shortened(parser, parser.parse_args(arguments)) == found


def test_the_printed_lines_are_recorded_in_the_result(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_output(parser)
    printed = PrintedResult("queueing", parser, parser.parse_args(["--output", str(folders[1])]))
    printed.say("one line")
    printed.say()
    printed.write(figure=3)
    record = json.loads((folders[1] / "queueing.json").read_text())
    assert (record["kind"], record["printed"], record["figure"]) == ("queueing", ["one line", ""], 3)
    assert capsys.readouterr().out.startswith("one line\n\nWritten: queueing.json in ")


def test_an_error_of_ours_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for failures, status in ((0, 0), (1, 1)):
        measured = {**result({OURS: server(10, 60)}), "targets": []}
        measured["servers"][OURS]["clients"]["1"]["errors"] = failures
        monkeypatch.setattr("sys.argv", ["latency.py", "--output", str(tmp_path)])
        assert run_command("latency", latency._parser(), lambda options: measured) == status  # noqa: B023
