"""benchmarks/queueing.py against queueing theory, and its autoscaler."""

import pytest

from benchmarks import queueing


@pytest.mark.parametrize("utilisation", [0.5, 0.7])
def test_one_cpu_waits_as_long_as_the_formula_says(utilisation: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Pollaczek–Khinchine formula: the mean wait in an M/G/1 queue, from mean and variance of the service time."""
    monkeypatch.setattr(queueing, "CPUS", 1)
    waits = queueing.simulate_steady_load(1, utilisation, least_busy=False, images=200_000).waits
    variation = 2.718281828 ** (queueing._SPREAD**2) - 1  # squared, of a lognormal
    wanted = queueing.SERVICE_SECONDS * utilisation * (1 + variation) / (2 * (1 - utilisation))
    assert sum(waits) / len(waits) == pytest.approx(wanted, rel=0.05)


def test_excess_load_is_refused_and_no_wait_exceeds_a_full_queue() -> None:
    outcome = queueing.simulate_steady_load(1, 1.5, least_busy=False, images=20_000)
    assert outcome.refused_share == pytest.approx(1 - 1 / 1.5, abs=0.02)
    assert max(outcome.waits) <= queueing.QUEUE_LIMIT * queueing.SERVICE_SECONDS / queueing.CPUS


def test_a_balancer_that_looks_waits_less() -> None:
    random_one, less_busy = (
        queueing.simulate_steady_load(10, 0.8, least_busy=least_busy, images=20_000) for least_busy in (False, True)
    )
    assert less_busy.wait(0.99) < random_one.wait(0.99) / 2


def test_load_that_doubles_gets_twice_the_replicas_and_late_ones_cost_requests() -> None:
    soon, late = (queueing.simulate_doubling_load(0.7, seconds, minutes=2) for seconds in (5.0, 60.0))
    assert soon.replicas == pytest.approx(20, abs=2)
    assert soon.refused_share < late.refused_share / 2
