"""Compares what the CPUs computed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.cpus.machines import KINDS, Machine

LOGITS_WITHIN = 1e-4


@dataclass(frozen=True)
class Output:
    """A model's output on one CPU: sha256 of the last uint8 tensor for each image, and logits `[images, classes]`."""

    sha256: list[str]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """How far one CPU's output is from the native one's, over all images."""

    images: int
    same_integers: int
    same_top1: int
    max_difference: float

    @property
    def passed(self) -> bool:
        same = self.same_integers == self.same_top1 == self.images > 0
        return same and self.max_difference <= LOGITS_WITHIN

    def __str__(self) -> str:
        return (
            f"integers {self.same_integers}/{self.images}  max |Δ logit| {self.max_difference:.1e}  "
            f"top-1 {self.same_top1}/{self.images}  {'ok' if self.passed else 'DIFFERENT'}"
        )


def compare(expected: Output, got: Output) -> Comparison:
    """Compares two outputs; raises `ValueError` if they are not of the same number of images."""
    return Comparison(
        len(expected.sha256),
        sum(a == b for a, b in zip(expected.sha256, got.sha256, strict=True)),
        int((expected.logits.argmax(1) == got.logits.argmax(1)).sum()),
        # NaN is not within any bound.
        float(np.nan_to_num(np.abs(expected.logits - got.logits), nan=np.inf).max()),
    )


def contradictions(machine: Machine, cpu: dict[str, Any]) -> list[str]:
    """Returns in what a CPU is not what it should be."""
    features = set(cpu["features"])
    found = [f"lacks {name}" for name in sorted(machine.has - features)]
    found += [f"has {name}" for name in sorted(machine.lacks & features)]
    if cpu["machine"] != machine.machine:
        found.append(f"is {cpu['machine']}, not {machine.machine}")
    if machine.part and (int(cpu["identity"].split()[-1], 16) >> 4 & 0xFFF) != machine.part:
        found.append(f"has {cpu['identity']}, not part {machine.part:#x}")
    return found


def not_covered(cpus: list[dict[str, Any]]) -> list[str]:
    """Returns the kinds of CPU that none of these is."""
    shown = [set(cpu["features"]) for cpu in cpus]
    return [
        kind
        for kind, (has, lacks) in KINDS.items()
        if not any(set(has.split()) <= features and not set(lacks.split()) & features for features in shown)
    ]
