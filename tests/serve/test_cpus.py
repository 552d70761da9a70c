"""The CPUs that may be used: affinity, cgroup quotas of both versions, and the setting."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from serve.config.cpus import cgroup_quota, cpu_budget, cpu_features, cpu_model, cpu_vendor
from serve.config.settings import ROOT

HERE = len(os.sched_getaffinity(0))
V1 = "31 23 0:29 {shown} /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "31 23 0:29 {shown} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = "22 1 8:1 / / rw - ext4 /dev/root rw\n40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"


def machine(root: Path, mounts: str, groups: str, files: dict[str, str]) -> Path:
    """A folder with the files of /proc and the cgroups of a system."""
    for name, text in {"proc/self/mountinfo": OTHERS + mounts, "proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(quota: str, period: str = "100000", folder: str = "sys/fs/cgroup/cpu") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(("quota", "count"), [("150000", 1), ("50000", 1), ("100000", 1), ("99999999", HERE)])
def test_a_version_1_quota_is_rounded_down_but_not_below_one(tmp_path: Path, quota: str, count: int) -> None:
    root = machine(tmp_path, V1.format(shown="/"), "4:cpu,cpuacct:/\n", v1(quota))
    assert cpu_budget(0, root).count == count


@pytest.mark.parametrize(("quota", "count"), [("290000", 2), ("300000", 3), ("10000", 1), ("900000", 8)])
def test_a_quota_is_rounded_down_on_a_larger_machine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    root = machine(tmp_path, V1.format(shown="/"), "4:cpu,cpuacct:/\n", v1(quota))
    assert cpu_budget(0, root).count == count


@pytest.mark.parametrize(("text", "quota"), [("150000 100000", 1.5), ("max 100000", None), ("20000 10000", 2.0)])
def test_a_version_2_quota_is_read(tmp_path: Path, text: str, quota: float | None) -> None:
    root = machine(tmp_path, V2.format(shown="/"), "0::/\n", {"sys/fs/cgroup/cpu.max": f"{text}\n"})
    assert cgroup_quota(root) == quota


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/cpu.max": "130000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/beside/cpu.max": "10000 100000\n",
    }
    assert cgroup_quota(machine(tmp_path, V2.format(shown="/"), "0::/a/b\n", files)) == 1.3


def test_a_container_that_sees_only_its_own_group_finds_its_quota(tmp_path: Path) -> None:
    """Without a cgroup namespace the path is the host's, and only that group is mounted."""
    root = machine(tmp_path, V1.format(shown="/docker/abc"), "4:cpu,cpuacct:/docker/abc\n", v1("50000"))
    assert cgroup_quota(root) == 0.5
    elsewhere = machine(tmp_path / "b", V1.format(shown="/docker/abc"), "4:cpu,cpuacct:/other\n", v1("70000"))
    assert cgroup_quota(elsewhere) == 0.7


def test_both_cgroup_versions_are_read_if_mounted_side_by_side(tmp_path: Path) -> None:
    mounts = V1.format(shown="/") + V2.format(shown="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    groups = "4:cpu,cpuacct:/one\n0::/two\n"
    files = {**v1("200000", folder="sys/fs/cgroup/cpu/one"), "sys/fs/cgroup/unified/two/cpu.max": "90000 100000\n"}
    assert cgroup_quota(machine(tmp_path, mounts, groups, files)) == 0.9


@pytest.mark.parametrize("files", [{}, v1("-1"), v1("rubbish"), v1("100000", "0"), {"sys/fs/cgroup/cpu/cpu.max": ""}])
def test_no_quota_is_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    root = machine(tmp_path, V1.format(shown="/"), "4:cpu,cpuacct:/\n", files)
    assert cgroup_quota(root) is None
    assert cpu_budget(0, root).count == HERE
    assert cgroup_quota(tmp_path / "no-proc-at-all") is None


def test_malformed_lines_are_skipped(tmp_path: Path) -> None:
    root = machine(tmp_path, V2.format(shown="/"), "0::/\nrubbish\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"})
    mounts = root / "proc/self/mountinfo"
    mounts.write_bytes(
        b"50 1 0:5 / /mnt rw - tmpfs  rw\n51 1 0:6 / /\xff rw - ext4 /dev/x rw\nshort\n" + mounts.read_bytes()
    )
    assert cgroup_quota(root) == 0.5


def test_a_group_below_the_one_that_is_mounted_is_found(tmp_path: Path) -> None:
    files = v1("60000", folder="sys/fs/cgroup/cpu/inner")
    root = machine(tmp_path, V1.format(shown="/docker/abc"), "4:cpu,cpuacct:/docker/abc/inner\n", files)
    assert cgroup_quota(root) == 0.6


def test_the_reason_names_the_smallest_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, V2.format(shown="/"), "0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert cpu_budget(0, root).reason == "the cgroup's quota of 0.5 CPUs"
    assert cpu_budget(0, tmp_path / "none").reason == "all that this process may run on"
    assert cpu_budget(10_000, tmp_path / "none").count == HERE


def test_the_setting_can_only_lower_it(tmp_path: Path) -> None:
    root = machine(tmp_path, V2.format(shown="/"), "0::/\n", {"sys/fs/cgroup/cpu.max": "9999999 1000\n"})
    budget = cpu_budget(1, root)
    assert budget.count == 1
    assert budget.reason == ("the threads setting" if HERE > 1 else "all that this process may run on")


def test_a_real_affinity_is_followed() -> None:
    one = min(os.sched_getaffinity(0))
    code = "from serve.config.cpus import cpu_budget; print(cpu_budget(0).count)"
    command = ["taskset", "--cpu-list", str(one), sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "1\n"


def test_the_cpus_name_vendor_and_instruction_sets_are_those_that_linux_lists(tmp_path: Path) -> None:
    here = platform.machine()
    assert (cpu_model(tmp_path), cpu_vendor(tmp_path), cpu_features(tmp_path)) == (here, "", set())
    (tmp_path / "proc").mkdir()
    told = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 143\nmodel name\t: A CPU\nflags\t\t: fpu amx_int8\n"
    (tmp_path / "proc/cpuinfo").write_text(told)
    assert (cpu_model(tmp_path), cpu_vendor(tmp_path)) == ("A CPU", "GenuineIntel")
    assert cpu_features(tmp_path) == {"fpu", "amx_int8"}
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")  # arm64
    assert (cpu_model(tmp_path), cpu_features(tmp_path)) == (here, {"fp", "asimd", "asimddp"})
