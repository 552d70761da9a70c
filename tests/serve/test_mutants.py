"""The mutation runner: finding mutants, running them against good and poor tests, the report and its tables."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.__main__ import EQUIVALENTS, report
from tests.mutants.mutate import mutants_of
from tests.mutants.parts import PARTS, Part
from tests.mutants.run import Equivalent, MutationError, Survey, read_equivalents, survey
from tests.mutants.tables import faults_of
from tests.server_process import ROOT

SOURCE = """\
LIMIT = 3

def clipped(values, *, low=0):
    if not values or low > LIMIT:
        return []
    values = sorted(values, reverse=True)
    values.reverse()
    if values[-1] < low:
        raise ValueError("all too low")
    return [max(value, low) for value in values]
"""
POOR = "from shop import clipped\n\ndef test_it():\n    assert clipped([2, 1])\n"
GOOD = """\
import pytest
import shop

def test_values():
    assert shop.clipped([3, 1, 2]) == [1, 2, 3]
    assert shop.clipped([-1, 5]) == [0, 5]
    assert shop.clipped([0, 0]) == [0, 0]

def test_ends():
    assert shop.clipped([]) == []
    assert shop.clipped([1, 3, 2], low=3) == [3, 3, 3]
    assert shop.clipped([9], low=4) == []
    with pytest.raises(ValueError):
        shop.clipped([2, 1], low=3)
"""


def changes(source: str) -> list[str]:
    return [mutant.changed_lines(source)[1] for mutant in mutants_of(source, "shop.py")]


def test_each_mutant_is_one_small_change_that_compiles() -> None:
    found = changes(SOURCE)
    for line in (
        "LIMIT = 4",
        "LIMIT = 2",
        "if  values or low > LIMIT:",
        "if not values and low > LIMIT:",
        "if not values or low >= LIMIT:",
        "if not values or low < LIMIT:",
        "return None",
        "values = list(values, reverse=True)",
        "values = sorted(values)",
        "values = sorted(values, reverse=False)",
        "pass",
        "if values[1] < low:",
        "if values[-1] <= low:",
        "return [min(value, low) for value in values]",
    ):
        assert line in found
    for mutant in mutants_of(SOURCE, "shop.py"):
        compile(mutant.apply(SOURCE), "shop.py", "exec")


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("a = b + c // d", {"a = b - c // d", "a = b + c * d"}),
        ("a += b", {"a -= b", "a = b"}),
        ("if b is not None: c()", {"if b is None: c()", "if b is not None: pass"}),
        ("if b: c = d", {"if not (b): c = d"}),
        ("a = [b for b in c if d(b)]", {"a = [b for b in c if not (d(b))]"}),
        ("a = f(k=b, **c)", {"a = f(**c)", "a = f(k=b)"}),
        ("a = statistics.median(b)", {"a = min(b)"}),
        ("a: int | None = f'{b + 1}'", set()),
        ("def a(b: int | None) -> int | None: return b", {"def a(b: int | None) -> int | None: return None"}),
        ("'é'; a = b < c", {"'é'; a = b <= c", "'é'; a = b > c"}),
        ("open(a, encoding='utf-8')", {"pass"}),
    ],
)
def test_each_kind_of_change(line: str, becomes: set[str]) -> None:
    assert set(changes(line)) == becomes


def test_only_the_named_functions_are_mutated() -> None:
    source = (
        "class A:\n    def b(self): return self.x + 1\n    def bc(self): return 2 + self.y\n\ndef A2(): return 1 + x\n"
    )
    assert {mutant.function for mutant in mutants_of(source, "a.py", ["A"])} == {"A.b", "A.bc"}
    assert {mutant.function for mutant in mutants_of(source, "a.py", ["A.b"])} == {"A.b"}


@pytest.fixture
def try_test(tmp_path: Path) -> Callable[..., Survey]:
    """Returns a function that runs the mutants of a project of one file against a test."""

    def run(test: str, *equivalents: Equivalent, source: str = SOURCE, **options: Any) -> Survey:
        def project(folder: Path) -> Path:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "shop.py").write_text(source)
            (folder / "test_shop.py").write_text(test)
            return folder

        part = Part("shop", {"shop.py": ()}, ("test_shop.py",), sys.executable)
        return survey([part], project(tmp_path / "original"), project, equivalents, **options)

    return run


def test_a_good_test_kills_mutants_that_a_poor_one_does_not(try_test: Callable[..., Survey]) -> None:
    poor = try_test(POOR, limit=12, seed=1)
    assert len(poor.results) == 12
    assert {result.status for result in poor.results} == {"killed", "survived"}
    text, good = report(poor)
    assert not good
    assert text.splitlines()[-1].startswith("mutants: ")
    assert "killed of 12; at least 90% of each part wanted: shop " in text.splitlines()[-1]

    better = try_test(GOOD, workers=2)
    assert [result.mutant.line for result in better.results if result.status == "survived"] == []
    assert "test_shop.py::test_" in better.results[0].by
    text, good = report(better)
    assert good
    assert text.splitlines()[-1].endswith("at least 90% of each part wanted: good")


def test_an_endless_mutant_is_stopped_and_reported(
    try_test: Callable[..., Survey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.mutants.run._MORE_SECONDS", 0.5)
    source = "def count():\n    n = 3\n    while n:\n        n -= 1\n"
    test = "from shop import count\n\ndef test_it():\n    count()\n"
    outcome = try_test(test, source=source)
    endless = [result for result in outcome.results if result.status == "timeout"]
    assert {result.mutant.changed_lines(source)[1] for result in endless} >= {"n += 1", "n = 1"}


def test_equivalents_are_left_out_and_must_be_mutants(try_test: Callable[..., Survey]) -> None:
    entry = Equivalent("shop.py", "clipped", "if values[-1] < low:", "if values[-1] <= low:", "a reason")
    outcome = try_test(POOR, entry, limit=1)
    assert (outcome.equivalents, outcome.stale) == ({"shop": 1}, [])
    stale = Equivalent("shop.py", "clipped", "if values[-1] < low:", "something else", "a reason")
    outcome = try_test(GOOD, stale, limit=1)
    assert outcome.stale == [stale]
    assert not report(outcome)[1]


def test_tests_that_fail_without_a_mutation_are_an_error(try_test: Callable[..., Survey]) -> None:
    with pytest.raises(MutationError, match="the tests of shop fail without any mutation"):
        try_test("def test_it():\n    assert False\n")


def test_everything_that_the_tables_name_exists() -> None:
    assert faults_of(PARTS, read_equivalents(EQUIVALENTS), ROOT) == []


@pytest.mark.parametrize(
    ("part", "entry", "fault"),
    [
        (Part("a", {"gone.py": ()}, ()), None, "parts.py, a: there is no gone.py"),
        (Part("a", {"shop.py": ("closed",)}, ()), None, "parts.py, a: shop.py has no closed"),
        (Part("a", {"shop.py": ()}, ("test_gone.py",)), None, "parts.py, a: there is no test_gone.py"),
        (Part("a", {"shop.py": ()}, ("shop.py::test_it",)), None, "parts.py, a: shop.py has no test_it"),
        (Part("a", {"shop.py": ()}, ()), ("gone.py", "clipped", ""), "there is no gone.py"),
        (Part("a", {"shop.py": ()}, ()), ("shop.py", "closed", ""), "shop.py has no closed"),
        (Part("a", {"other.py": ()}, ()), ("shop.py", "clipped", ""), "no part in parts.py has shop.py"),
        (Part("a", {"shop.py": ("other",)}, ()), ("shop.py", "clipped", ""), "no part in parts.py has clipped"),
        (Part("a", {"shop.py": ()}, ()), ("shop.py", "clipped", "x"), "no mutant makes this line 'x'"),
        (Part("a", {"shop.py": ()}, ()), ("shop.py", "clipped", "if values[-1] <= low:"), ""),
    ],
)
def test_a_table_that_is_out_of_date_is_reported(
    tmp_path: Path, part: Part, entry: tuple[str, str, str] | None, fault: str
) -> None:
    for name in ("shop.py", "other.py"):
        (tmp_path / name).write_text(SOURCE + "\ndef other(): return 1 + LIMIT\n")
    equivalents = []
    if entry:
        file, function, becomes = entry
        equivalents = [Equivalent(file, function, "if values[-1] < low:", becomes, "a reason")]
    found = faults_of([part], equivalents, tmp_path)
    assert (len(found), fault in "".join(found)) == (bool(fault), True)
