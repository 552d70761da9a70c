"""Workers: processes that compute without HTTP (an engine, the loop) and answer JSON lines over pipes.

Between two lines a worker waits and uses no CPU.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.errors import WorkerFailed
from benchmarks.harness.load import percentiles
from benchmarks.harness.machine import ROOT, child_environment
from benchmarks.harness.processes import CpuWatch, ProcessTree

_ERROR_END: Final = 1000


@dataclass(frozen=True)
class WorkerSpec:
    """How to start a worker.

    Attributes:
        name: Its name in results.
        python: The interpreter of its environment.
        arguments: The arguments of that interpreter, which is started in the project's root.
    """

    name: str
    python: Path
    arguments: tuple[str, ...]


class Worker:
    """A running worker. Call `check` before the first measurement."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`
        self._process = subprocess.Popen(
            [str(spec.python), *spec.arguments],
            cwd=ROOT,
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def check(self, expect: str) -> None:
        """Wait until the worker is ready, which it reports with the class of its first image.

        Args:
            expect: Right ImageNet ids, separated by commas.

        Raises:
            WorkerFailed: The class is wrong, or the worker ended.
        """
        given = self._read().get("imagenet_id", "")
        if given not in expect.split(","):
            raise WorkerFailed(f"{self.spec.name} gives {given}, where {expect} is right")

    def measure(self, **question: Any) -> dict[str, Any]:
        """Have the worker measure once.

        Args:
            question: As the worker's program documents it.

        Returns:
            Percentiles and times in milliseconds, images a second, and the other processes' share of the CPUs.

        Raises:
            WorkerFailed: The worker ended.
        """
        watch = CpuWatch(ProcessTree(self._process.pid))
        answer = self._ask(**question)
        times = answer["ms"]
        return {
            **percentiles(times),
            "ms": times,
            "images_per_s": len(times) / answer["seconds"],
            "others_cpu_share": watch.others_share(),
        }

    def _ask(self, **question: Any) -> dict[str, Any]:
        """Write one line and read one."""
        if self._process.stdin is None:
            raise WorkerFailed(f"{self.spec.name} has no standard input")
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed() from error
        return self._read()

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise self._failed()
        content: dict[str, Any] = json.loads(line)
        return content

    def _failed(self) -> WorkerFailed:
        self._process.wait()
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _ERROR_END))
        written = self._errors.read().decode(errors="replace").strip()
        return WorkerFailed(f"{self.spec.name} ended with status {self._process.returncode}:\n{written}")
