"""Runs tests for the mutants of one environment: imports slow packages once, and forks for each mutant.

Started as a script in a copy of the project. Reads one job per line from standard input and writes one result per line
to standard output, both as JSON. It imports nothing of the project, so that each child imports the mutated source.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

# Imported if the environment has them. None belongs to the project.
PRELOADED = (
    "hypothesis",
    "httpx2",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "PIL.Image",
    "pytest",
    "starlette.testclient",
    "torch",
    "torch.onnx",
    "torchvision",
    "uvicorn",
)


def main() -> None:
    sys.path[0] = str(Path.cwd())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that `finally` ends the child, too
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=results, flush=True)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job's tests in a child process.

    Args:
        job: `tests`: files or node ids. `without`: tests whose name or fixtures contain one of these words are left
            out. `first`: node ids to start with. `stop`: whether to stop at the first failure. `trace`: files of which
            to record the functions that each test enters. `seconds`: the time limit. `report`, `output`, `temporary`:
            paths to write to.

    Returns:
        `code`: pytest's exit status, None if the limit was reached. `seconds`: the time taken. `failed`: the first test
        that failed. `tests`: what was recorded of each test.
    """
    report = Path(job["report"])
    report.unlink(missing_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_tests(job, report)
    code = None
    try:
        while time.monotonic() - started < job["seconds"]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # the child and any server that its tests left running
        if code is None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
    noted = json.loads(report.read_text()) if report.is_file() else {"failed": "", "tests": {}}
    return {"code": code, "seconds": time.monotonic() - started, **noted}


def _run_tests(job: dict[str, Any], report: Path) -> None:
    """Runs the tests in the child process; does not return."""
    code = 3
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        sys.dont_write_bytecode = True
        import pytest

        notes = Notes(job)
        options = ["-q", "-p", "no:cacheprovider", f"--basetemp={job['temporary']}", *(["-x"] if job["stop"] else [])]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # for plug-ins that are already imported
        with notes.tracing():
            code = int(pytest.main([*options, *job["tests"]], plugins=[notes]))
        report.write_text(json.dumps({"failed": notes.failed, "tests": notes.tests}))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Notes:
    """A pytest plug-in: orders the tests, and records their times, the functions they enter and the first failure."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._first = {name: position for position, name in enumerate(job["first"])}
        self._files = {str(Path.cwd() / name): name for name in job["trace"]}
        self._without = job["without"]
        self._entered: set[tuple[str, int]] = set()
        self.failed = ""
        self.tests: dict[str, Any] = {}

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        if self._files:
            sys.settrace(self._enter)
            threading.settrace(self._enter)
        yield
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, _: Any) -> None:
        file = self._files.get(frame.f_code.co_filename)
        if file:
            self._entered.add((file, frame.f_code.co_firstlineno))

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [
            item
            for item in items
            if not any(word in item.name or word in getattr(item, "fixturenames", ()) for word in self._without)
        ]
        items.sort(key=lambda item: self._first.get(item.nodeid, len(self._first)))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._entered.clear()
        self._started = time.perf_counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.tests[nodeid] = {"seconds": time.perf_counter() - self._started, "entered": sorted(self._entered)}


if __name__ == "__main__":
    main()
