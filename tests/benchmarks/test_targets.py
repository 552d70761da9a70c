"""The targets' arithmetic: who is compared with whom, and which limit counts."""

from typing import Any

import pytest

from benchmarks.installed import LOOP, OLD_WAY, OURS, OURS_FP32
from benchmarks.rounds import spread
from benchmarks.targets import best_peer, judge
from tests.benchmarks.results import figures, result, server


def row(measured: dict[str, Any], words: str) -> dict[str, Any]:
    [found] = [row for row in judge(measured) if words in row["target"]]
    return found


def test_a_ratio_is_ours_against_theirs() -> None:
    measured = result({OURS: server(15, 60), OLD_WAY: server(150, 10)})
    found = row(measured, "p50, 1 client, against the old way")
    assert found["measured"]["median"] == pytest.approx(0.1)
    assert found["met"] is True
    assert row(measured, "images/s, 16 clients, against the old way")["measured"]["median"] == pytest.approx(6)


def test_a_ratio_is_taken_round_by_round_so_that_noise_on_both_cancels() -> None:
    ours, old = server(10, 60), server(100, 10)
    ours["clients"]["1"]["p50_ms"] = spread([10, 20, 40])
    old["clients"]["1"]["p50_ms"] = spread([100, 200, 400])
    found = row(result({OURS: ours, OLD_WAY: old}), "p50, 1 client, against the old way")
    assert (found["measured"]["min"], found["measured"]["max"]) == (0.1, 0.1)


@pytest.mark.parametrize(("vnni", "limit", "met"), [(True, 0.12, False), (False, 0.2, True)])
def test_the_limit_depends_on_the_cpu(vnni: bool, limit: float, met: bool) -> None:
    found = row(result({OURS: server(15, 60), OLD_WAY: server(100, 10)}, vnni), "p50, 1 client, against the old way")
    assert (found["limit"], found["met"]) == (limit, met)


def test_each_figure_is_compared_with_whichever_peer_is_best_at_it() -> None:
    peers = {"quick a, int8": server(10, 40), "many b, int8": server(20, 70), "other, fp32": server(1, 900)}
    measured = result({OURS: server(9, 77), OURS_FP32: server(1, 900), LOOP: server(1, 900), **peers})
    assert best_peer(measured, "1", "p50_ms") == "quick a, int8"
    assert best_peer(measured, "16", "images_per_s") == "many b, int8"
    found = row(measured, "images/s, 16 clients, against the best peer, int8")
    assert (found["against"], found["measured"]["median"], found["met"]) == ("many b, int8", pytest.approx(1.1), True)


def test_the_large_picture_has_rows_of_its_own() -> None:
    large = {"large 1": figures(40, 25), "large 16": figures(300, 50)}
    peer = {"large 1": figures(100, 10), "large 16": figures(1000, 20)}
    measured = result({OURS: server(10, 60, **large), "mosec b, int8": server(10, 60, **peer)})
    assert row(measured, "12 MP: p50")["measured"]["median"] == pytest.approx(0.4)
    assert row(measured, "12 MP: images/s")["measured"]["median"] == pytest.approx(2.5)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {row["met"] for row in judge(result({}))} == {None}


def test_our_own_figures_need_no_other() -> None:
    ours = server(10, 60, start=0.5)
    ours["clients"]["1"]["beyond_ms"] = spread([0.8])
    measured = result({OURS: ours})
    assert row(measured, "process start")["met"] is True
    assert row(measured, "p50 beyond")["measured"]["median"] == 0.8
    assert row(measured, "p99/p50")["measured"]["median"] == pytest.approx(1.2)
