"""benchmarks/sizes.py: what an installed package and all it needs weigh, the chart, and a machine without Docker."""

import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from benchmarks import sizes
from tests.server_process import ROOT


def test_packages_are_weighed_with_what_they_need() -> None:
    alone = sizes.packages_megabytes(Path(sys.executable), ("anyio",))
    with_what_it_needs = sizes.packages_megabytes(Path(sys.executable), ("starlette",))
    assert 0.1 < alone < with_what_it_needs < 20
    with pytest.raises(subprocess.CalledProcessError):
        sizes.packages_megabytes(Path(sys.executable), ("no-such-package",))


def test_the_chart_begins_with_the_smallest() -> None:
    megabytes = {"old way": 4918.0, "ours": 143.0, "mosec": 318.0}
    report = {"date": "2026-11-23T00:00:00", "base_mb": 124.0, "megabytes": megabytes}
    chart = xml.etree.ElementTree.fromstring(sizes.draw(report))
    texts = [each.text for each in chart.iter() if each.tag.endswith("text")]
    assert [text for text in texts if text in ("ours", "mosec", "old way")] == ["ours", "mosec", "old way"]
    assert "143 MB" in texts
    assert "MB, uncompressed" in texts


def test_without_an_engine_it_says_so_in_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/sizes.py", "--weights", "none.pth"],
        cwd=ROOT,
        env={"DOCKER": "/nonexistent/docker"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sizes: ")
    assert done.stderr.count("\n") == 1
