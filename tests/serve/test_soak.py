"""Tests the verdicts of `make soak` and `make overload`: what they count, and that they can fail."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.hostile.overload import Phase, Phases
from tests.hostile.overload import judge as judge_overload
from tests.hostile.soak import Mix, Record, Sample
from tests.hostile.soak import judge as judge_soak


def soaked(**changes: object) -> Record:
    outcomes = Counter({("good", "answered"): 70, ("good", "refused"): 20, ("aborted", "aborted by us"): 10})
    busy = [Sample(at, 150.0, 500, 12) for at in range(601)]
    return replace(Record(outcomes, 105, 100, 1.5, [], busy, rests(14, 10)), **changes)  # type: ignore[arg-type]


def rests(files: int, threads: int) -> list[Sample]:
    return [Sample(0, 140.0, 14, 10), Sample(606, 150.0, files, threads)]


def test_a_run_with_all_requests_accounted_for_and_no_growth_passes() -> None:
    lines, kept = judge_soak(soaked(), 10)
    assert kept
    assert "planned 105, sent 100 (95.2%; at least 95%)" in lines
    assert "sent 100 = answered + refused + aborted by us 100" in lines


@pytest.mark.parametrize(
    "changes",
    [
        {"sent": 101},
        {"outcomes": Counter({("good", "answered"): 99, ("good", "lost"): 1})},
        {"outcomes": Counter({("bad", "answered"): 99, ("bad", "wrong"): 1})},
        {"samples": [Sample(at, 150.0 + at / 40, 20, 12) for at in range(606)]},
        {"rests": rests(15, 10)},
        {"rests": rests(14, 11)},
        {"planned": 106},
    ],
    ids=["one missing", "one lost", "one wrong", "memory grows", "a file stays open", "a thread stays", "no load"],
)
def test_a_run_with_missing_requests_or_growth_fails(changes: dict[str, object]) -> None:
    assert not judge_soak(soaked(**changes), 10)[1]


def test_the_mix_has_every_kind_and_the_same_seed_the_same() -> None:
    first, second = ([Mix(5).next() for _ in range(1)] for _ in range(2))
    assert first == second
    mix = Mix(1)
    kinds = Counter(mix.next()[0] for _ in range(2000))
    assert set(kinds) == {"good", "bad", "huge", "too large", "aborted", "slow"}
    assert 0.65 < kinds["good"] / 2000 < 0.75


def phase(count: int, seconds: float, each: float, **others: int) -> Phase:
    answers = [(200, each)] * count
    answers += [(int(status[1:]), 0.01) for status, times in others.items() for _ in range(times)]
    return Phase(answers, seconds, 150.0, planned=len(answers), sent=len(answers))


def verdicts(overloaded: Phase, after: Phase | None = None, **capacity: int) -> list[bool]:
    alone, usual = phase(50, 1, 0.02), phase(800, 10, 0.2)
    found = Phases([overloaded, overloaded], [after or alone] * 2, [usual] * 3, [alone] * 3)
    if capacity:
        found.capacity = [phase(count, 10, 0.2) for count in capacity.values()]
    return [kept for _, _, kept in judge_overload(found)]


def test_overload_keeps_its_promises_or_each_is_seen_to_be_broken() -> None:
    good = phase(24_000, 300, 0.5, _429=70_000, _503=3)
    assert verdicts(good) == [True] * 7
    broken = [
        phase(24_000, 300, 0.5, _500=1),
        phase(24_000, 300, 11.0),
        phase(24_000, 300, 0.7),
        phase(22_700, 300, 0.5),
    ]
    for position, overloaded in enumerate(broken, start=1):
        assert not verdicts(overloaded)[position]
    assert not verdicts(good, after=phase(50, 1, 0.05))[5]
    assert not verdicts(replace(good, peak_megabytes=900.0))[6]
    assert not verdicts(replace(good, planned=100_000))[0]


def test_goodput_is_compared_with_the_capacity_around_it() -> None:
    """As on a machine that becomes slower, then faster."""
    good = phase(24_000, 300, 0.5)
    assert verdicts(good, first=1000, then=600, last=1000)[4]
    assert not verdicts(good, first=900, then=800, last=900)[4]
