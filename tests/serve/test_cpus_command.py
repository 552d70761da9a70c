"""Tests the verdicts of `make cpus`: each bound can be broken, and a CPU that is not what it should be is noticed."""

import numpy as np
import pytest

from tests.cpus.machines import HASWELL, MACHINES, NATIVE
from tests.cpus.verdict import Output, compare, contradictions, not_covered

LOGITS = np.array([[1.0, 2.0], [4.0, 3.0]], np.float32)
EXPECTED = Output(["a", "b"], LOGITS)
HASWELL_CPU = {"machine": "x86_64", "identity": "CPUID signature 0x306c4", "features": ["sse4_2", "fma", "avx", "avx2"]}
N1_CPU = {"machine": "aarch64", "identity": "MIDR_EL1 0x414fd0c1", "features": ["asimd", "asimddp"]}


def test_the_same_integers_and_nearly_the_same_logits_pass() -> None:
    assert compare(EXPECTED, Output(["a", "b"], LOGITS + np.float32(9e-5))).passed


@pytest.mark.parametrize(
    "got",
    [
        Output(["a", "c"], LOGITS),
        Output(["a", "b"], LOGITS + np.float32(2e-4)),
        Output(["a", "b"], LOGITS[:, ::-1]),
        Output(["a", "b"], np.full_like(LOGITS, np.nan)),
    ],
)
def test_each_bound_can_be_broken(got: Output) -> None:
    assert not compare(EXPECTED, got).passed


def test_nothing_compared_does_not_pass() -> None:
    assert not compare(Output([], LOGITS), Output([], LOGITS)).passed


def test_a_cpu_that_is_another_is_noticed() -> None:
    n1 = next(machine for machine in MACHINES if machine.name == "neoverse-n1")
    a72 = next(machine for machine in MACHINES if machine.name == "cortex-a72")
    assert (
        contradictions(HASWELL, HASWELL_CPU) == contradictions(n1, N1_CPU) == contradictions(NATIVE, HASWELL_CPU) == []
    )
    assert contradictions(HASWELL, HASWELL_CPU | {"features": ["avx2", "fma", "avx512f"]}) == ["has avx512f"]
    assert contradictions(HASWELL, HASWELL_CPU | {"features": ["avx2"]}) == ["lacks fma"]
    assert contradictions(a72, N1_CPU) == ["has asimddp", "has MIDR_EL1 0x414fd0c1, not part 0xd08"]


def test_kinds_that_no_cpu_has_are_not_covered() -> None:
    missing = not_covered([HASWELL_CPU, N1_CPU])
    assert {"AVX512 without VNNI", "arm64 without dot product"} <= set(missing)
    assert not {"AVX2 without VNNI", "arm64 with dot product"} & set(missing)
