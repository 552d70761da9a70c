"""What servers are measured with: photographs, numbers of clients, rounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.harness.servers import ServerSpec

START_SECONDS: Final = 3.0  # expected, of one start
_LEAD_IN: Final = 0.7  # expected seconds of a measurement besides the measuring itself


@dataclass(frozen=True)
class Photo:
    """A photograph to send, and the ImageNet ids that are right answers, separated by commas."""

    file: Path
    expect: str


@dataclass(frozen=True)
class Workload:
    """A photograph and a number of clients.

    Attributes:
        photo: A key of the run's photographs.
        seconds: Length of the measurement in each round.
        rounds: In how many rounds it is measured; None for all. A workload without a target needs fewer.
    """

    photo: str
    clients: int
    seconds: float
    rounds: int | None = None

    @property
    def key(self) -> str:
        """Its name in results: `16` for the ordinary photograph, `large 16` for another."""
        return str(self.clients) if self.photo == "photo" else f"{self.photo} {self.clients}"

    @property
    def expected_seconds(self) -> float:
        """Seconds that one measurement takes, with the time until every client has had its first answer."""
        return self.seconds + _LEAD_IN + 0.06 * self.clients


@dataclass(frozen=True)
class Plan:
    """How servers are measured.

    Attributes:
        answers: Minimum number of answers for each workload, all rounds together; a p99 needs 100.
    """

    workloads: tuple[Workload, ...]
    rounds: int
    answers: int = 100

    def expected_seconds(self, specs: Sequence[ServerSpec]) -> float:
        """The time that the plan takes with these servers."""
        photos = dict.fromkeys(workload.photo for workload in self.workloads)
        turns = [(self.workloads_of(number, photo), photo) for number in range(self.rounds) for photo in photos]
        return sum(
            START_SECONDS + sum(workload.expected_seconds for workload in workloads)
            for spec in specs
            for workloads, photo in turns
            if workloads and spec.is_sent(photo)
        )

    def min_answers(self, workload: Workload) -> int:
        """Minimum number of answers for a workload in each of its rounds."""
        return math.ceil(self.answers / min(self.rounds, workload.rounds or self.rounds))

    def workloads_of(self, number: int, photo: str) -> list[Workload]:
        """The workloads of one round, counted from 0, with one photograph."""
        return [each for each in self.workloads if each.photo == photo and number < (each.rounds or self.rounds)]


def plan_of(workloads: tuple[Workload, ...], rounds: int, scale: float) -> Plan:
    """A plan whose measurements take `scale` times as long; shorter ones need fewer answers, too."""
    scaled = tuple(replace(workload, seconds=workload.seconds * scale) for workload in workloads)
    return Plan(scaled, rounds, math.ceil(Plan.answers * min(1.0, scale)))
