"""Tests query parameters and headers of a request."""

import pytest

from serve.api.parameters import parse_timeout, parse_top_k
from serve.errors import BadParameter


def test_top_k_is_five_unless_asked_and_never_more_than_there_are_classes() -> None:
    assert parse_top_k([], 1000) == 5
    assert parse_top_k([], 2) == 2
    assert parse_top_k(["007"], 1000) == 7
    with pytest.raises(BadParameter, match=r"top_k='3' is not one whole number from 1 to 2\."):
        parse_top_k(["3"], 2)


def test_a_client_may_ask_for_less_time_but_not_for_more() -> None:
    assert parse_timeout(["250"], 10_000) == 0.25
    assert parse_timeout(["60000"], 10_000) == 10
    assert parse_timeout(["9" * 15], 10_000) == 10
    assert parse_timeout(["0" * 5000 + "250"], 10_000) == 0.25


@pytest.mark.parametrize("given", [["0"], ["-5"], ["1.5"], ["soon"], [""], ["1", "2"], ["9" * 5000], ["0" * 5000]])
def test_an_invalid_timeout_is_named(given: list[str]) -> None:
    with pytest.raises(BadParameter, match=r"X-Request-Timeout-Ms: .* whole number of milliseconds"):
        parse_timeout(given, 10_000)
