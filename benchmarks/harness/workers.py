"""Children that compute without HTTP, engines and the bare loop: each a process that answers JSON lines over pipes.

Between its lines a worker waits and costs nothing. Errors that leave here: `WorkerFailed`, with what it wrote last.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.load import percentiles
from benchmarks.harness.machine import ROOT, quiet_environment
from benchmarks.harness.processes import CpuWatch, Tree

_FOLDER: Final = Path(__file__).resolve().parent
_ERROR_END: Final = 1000


class WorkerFailed(Exception):
    """The worker ended, or gave the wrong class."""


@dataclass(frozen=True)
class WorkerSpec:
    """name: as reported. python: of the environment it runs in. script: in this folder."""

    name: str
    python: Path
    script: str
    arguments: tuple[str, ...]


class Worker:
    """A worker, from the start of its process on; `check` comes before the first measurement."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`
        self._process = subprocess.Popen(
            [str(spec.python), str(_FOLDER / spec.script), *spec.arguments],
            cwd=ROOT,
            env=quiet_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def check(self, expect: str) -> None:
        """Wait until it is ready, which it says with the class of its first picture."""
        given = self._read().get("imagenet_id", "")
        if given not in expect.split(","):
            raise WorkerFailed(f"{self.spec.name} gives {given}, where {expect} is right")

    def measure(self, **question: Any) -> dict[str, Any]:
        """Have it work for a while; times, images a second, and what others took of the CPUs meanwhile."""
        watch = CpuWatch(Tree(self._process.pid))
        answer = self._ask(**question)
        times = answer["ms"]
        return {
            **percentiles(times),
            "ms": times,
            "images_per_s": len(times) / answer["seconds"],
            "others_cpu_share": watch.others_share(),
        }

    def _ask(self, **question: Any) -> dict[str, Any]:
        """One line there, one line back."""
        if self._process.stdin is None:
            raise WorkerFailed(f"{self.spec.name} has no standard input")
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed() from error
        return self._read()

    def stop(self) -> None:
        """End it by its own process id."""
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
