"""Tests a short run of `make hostile`, and that its verdict can fail."""

import json
import random

import pytest

from tests.hostile.__main__ import KINDS, Report, attacks, exceeded_limits, hostile, log_problems, table, verdict
from tests.hostile.prober import quantile, with_delayed_probes
from tests.hostile.requests import matches_contract
from tests.tiny_model import PATH as TINY_MODEL


def test_two_thousand_hostile_requests_get_responses_within_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hostile.__main__.PROBE_SECONDS", 2.0)  # other tests may have the CPUs
    report = hostile(2000, 7, "--model", str(TINY_MODEL))
    assert report.wrong == [], table(report)
    assert report.sent == 2000
    assert len(report.good) > 10
    assert len(report.probes) > 10
    assert set(report.answers) >= {maker.__name__ for maker in KINDS} | {"bombs"}
    assert report.peak_megabytes < 600


def test_the_same_seed_sends_the_same_requests() -> None:
    first, second = ([(kind, attack.data) for kind, attack in attacks(300, 3)] for _ in range(2))
    assert first == second
    assert len(first) == 300


def test_every_kind_of_request_has_expected_answers() -> None:
    for maker in KINDS:
        for seed in range(20):
            attack = maker(random.Random(seed))
            assert attack.data
            assert attack.expected


def test_an_answer_with_internal_details_violates_the_contract() -> None:
    def problem(detail: str, status: int = 422, reason: str = "undecodable_image") -> bytes:
        return json.dumps({"status": status, "detail": detail, "reason": reason}).encode()

    kind = "application/problem+json"
    assert matches_contract(422, kind, problem("The PNG image cannot be decoded."))
    assert not matches_contract(422, kind, problem("Traceback (most recent call last)"))
    assert not matches_contract(
        422, kind, problem("ValueError('x') in /usr/local/lib/python3.11/site-packages/PIL/Image.py")
    )
    assert not matches_contract(422, kind, problem("fine", status=400))
    assert not matches_contract(422, kind, problem("fine", reason="another"))
    assert not matches_contract(422, kind, problem("fine", reason="empty_file"))
    assert not matches_contract(422, "text/plain", problem("fine"))
    assert matches_contract(400, "application/json", b'{"error": "There is no input."}')
    assert not matches_contract(400, "application/json", problem("fine"))


def test_malformed_log_lines_and_defects_are_found() -> None:
    good = json.dumps({"level": "info", "message": "x"})
    bad = ["TIFFReadDirectory: Warning", json.dumps({"level": "error", "message": "unexpected error"}), "[]"]
    assert len(log_problems([good, *bad])) == len(bad)


def test_probes_that_wait_and_probes_that_are_not_answered_are_found() -> None:
    quick = [0.01] * 990
    assert exceeded_limits(Report(probes=quick + [9.0] * 10)) == []
    assert exceeded_limits(Report(probes=quick + [0.6] * 11)) == [
        "one of a hundred probes took 0.60 s or more; the limit is 0.5 s"
    ]
    assert len(exceeded_limits(Report(probes=[*quick, float("inf")]))) == 1
    assert len(exceeded_limits(Report())) == 1  # there were none
    assert len(exceeded_limits(Report(probes=quick, good=[5.1], peak_megabytes=701))) == 2


def test_a_slow_probe_also_counts_for_the_probes_it_delayed() -> None:
    assert with_delayed_probes(0.01) == [0.01]
    assert with_delayed_probes(0.17) == pytest.approx([0.17, 0.12, 0.07, 0.02])
    assert set(with_delayed_probes(float("inf"))) == {float("inf")}
    assert len(with_delayed_probes(float("inf"))) == 200


def test_quantiles_are_observed_values() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [quantile(values, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]


def test_the_last_line_is_the_verdict() -> None:
    assert verdict(Report()) == "hostile: passed"
    assert verdict(Report(wrong=["a", "b", "c"])) == "hostile: failed, 3 failures"
