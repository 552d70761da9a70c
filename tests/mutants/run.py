"""Runs mutants in copies of the project, several at a time, each against the tests of its part."""

import ast
import json
import os
import random
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from tests.mutants.mutate import Mutant, mutants_of
from tests.mutants.parts import Part

_WORKER: Final = Path(__file__).with_name("worker.py")
_FIRST_SECONDS: Final = 900.0  # limit for the tests of a part without a mutation
# A mutant that reaches the time limit counts as killed, so the limit is generous: five times the tests' time plus this.
_MORE_SECONDS: Final = 30.0


class MutationError(Exception):
    """Mutants cannot be judged: their tests fail without a mutation, or a worker ended."""


@dataclass(frozen=True)
class Result:
    """What became of one mutant.

    Attributes:
        part: The part's name.
        mutant: The mutant.
        lines: The changed lines before and after.
        status: "killed", "timeout" or "survived".
        seconds: How long the tests ran.
        by: Node id of the test that failed, "" if none did.
    """

    part: str
    mutant: Mutant
    lines: tuple[str, str]
    status: str
    seconds: float
    by: str


@dataclass(frozen=True)
class Equivalent:
    """A mutant that no test can kill, identified by its file, function and changed lines."""

    file: str
    function: str
    line: str
    becomes: str
    why: str


@dataclass
class Survey:
    """The results of a run.

    Attributes:
        results: The results of all mutants.
        equivalents: Part → number of its mutants that were left out as equivalent.
        stale: Entries of equivalents.toml that match no mutant.
    """

    results: list[Result] = field(default_factory=list)
    equivalents: dict[str, int] = field(default_factory=dict)
    stale: list[Equivalent] = field(default_factory=list)


def read_equivalents(path: Path) -> list[Equivalent]:
    """Reads `equivalents.toml`."""
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", [])
    return [Equivalent(**{name: value.strip() for name, value in entry.items()}) for entry in entries]


def survey(
    parts: Sequence[Part],
    root: Path,
    copy: Callable[[Path], Path],
    equivalents: Sequence[Equivalent] = (),
    *,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 1,
    on_result: Callable[[Result, int, int], None] = lambda result, done, total: None,
) -> Survey:
    """Runs the mutants of these parts.

    Args:
        parts: The parts.
        root: The project's folder.
        copy: Copies the project into a folder and returns that.
        equivalents: Mutants to leave out.
        limit: Maximum number of mutants of each part, drawn with `seed`.
        seed: Seed of that draw.
        workers: Number of mutants to run at the same time.
        on_result: Called with each result, the number of results so far and the number of mutants.

    Raises:
        MutationError: The tests of a part fail without a mutation, or a worker ended.
    """
    outcome = Survey()
    chosen: list[tuple[Part, Mutant]] = []
    unused = {entry for entry in equivalents if any(entry.file in part.sources for part in parts)}
    for part in parts:
        mutants = []
        for file, functions in part.sources.items():
            source = (root / file).read_text(encoding="utf-8")
            for mutant in mutants_of(source, file, functions):
                key = (mutant.file, mutant.function, *mutant.changed_lines(source))
                entry = next((e for e in equivalents if (e.file, e.function, e.line, e.becomes) == key), None)
                if entry is None:
                    mutants.append(mutant)
                else:
                    unused.discard(entry)
                    outcome.equivalents[part.name] = outcome.equivalents.get(part.name, 0) + 1
        if limit is not None and limit < len(mutants):
            mutants = sorted(random.Random(seed).sample(mutants, limit), key=lambda each: (each.file, each.start))
        chosen += [(part, mutant) for mutant in mutants]
    outcome.stale = [entry for entry in equivalents if entry in unused and _of_functions(entry, parts)]
    with _copies(parts, root, copy, workers) as copies:
        free: SimpleQueue[_Copy] = SimpleQueue()
        for each in copies:
            free.put(each)

        def with_a_copy(method: Callable[..., Any], *arguments: Any) -> Any:
            place = free.get()
            try:
                return method(place, *arguments)
            finally:
                free.put(place)

        with ThreadPoolExecutor(workers) as pool:
            first = {part.name: pool.submit(with_a_copy, _Copy.without_mutation, part) for part in parts}
            baselines = {name: future.result() for name, future in first.items()}
            running = [
                pool.submit(with_a_copy, _Copy.try_mutant, part, mutant, baselines[part.name])
                for part, mutant in chosen
            ]
            try:
                for done, future in enumerate(running, start=1):
                    outcome.results.append(future.result())
                    on_result(outcome.results[-1], done, len(running))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return outcome


def _of_functions(entry: Equivalent, parts: Sequence[Part]) -> bool:
    return any(
        not functions or any(entry.function == name or entry.function.startswith(f"{name}.") for name in functions)
        for part in parts
        for file, functions in part.sources.items()
        if file == entry.file
    )


@dataclass(frozen=True)
class _Baseline:
    """A run of the tests without a mutation.

    Attributes:
        seconds: How long all tests took.
        tests: Node id → `seconds`, and `entered`: file and line of each function that the test enters.
    """

    seconds: float
    tests: dict[str, Any]

    def first_for(self, mutant: Mutant, source: str) -> list[str]:
        """Returns the tests that enter the mutant's function, fastest first; at module level, those that enter any."""
        low, high = _lines_of(mutant, source)
        reaching = [
            name
            for name, test in self.tests.items()
            if any(file == mutant.file and low <= line <= high for file, line in test["entered"])
        ]
        return sorted(reaching, key=lambda name: float(self.tests[name]["seconds"]))


def _lines_of(mutant: Mutant, source: str) -> tuple[int, int]:
    """Returns the first and last line of the innermost function around a mutant, including decorators."""
    low, high = 1, source.count("\n") + 1
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if start <= mutant.line <= (node.end_lineno or 0) and start >= low:
                low, high = start, node.end_lineno or high
    return low, high


class _Copy:
    """A copy of the project with a process for each interpreter. It runs one set of tests at a time."""

    def __init__(self, folder: Path, root: Path, pythons: set[str]) -> None:
        self._folder, self._beside = folder, folder.parent
        environment = {name: value for name, value in os.environ.items() if name not in {"WEIGHTS", "PHOTOS"}}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "ORT_DISABLE_TELEMETRY": "1"}
        pipe = subprocess.PIPE
        with (self._beside / "worker.log").open("a") as errors:
            self._processes = {
                python: subprocess.Popen(
                    [root / python, _WORKER],
                    cwd=folder,
                    env=environment,
                    stdin=pipe,
                    stdout=pipe,
                    stderr=errors,
                    text=True,
                )
                for python in pythons
            }

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
            process.communicate()

    def without_mutation(self, part: Part) -> _Baseline:
        """Runs a part's tests twice: for their time, and traced for the functions that they enter, which is slower."""
        plain = self._run(part, _FIRST_SECONDS)
        if plain["code"] != 0:
            output = (self._beside / "output").read_text(errors="replace")
            raise MutationError(f"the tests of {part.name} fail without any mutation:\n{output[-3000:]}")
        traced = self._run(part, _FIRST_SECONDS, trace=list(part.sources))
        tests = {
            name: {"seconds": test["seconds"], "entered": traced["tests"].get(name, test)["entered"]}
            for name, test in plain["tests"].items()
        }
        return _Baseline(plain["seconds"], tests)

    def try_mutant(self, part: Part, mutant: Mutant, baseline: _Baseline) -> Result:
        path = self._folder / mutant.file
        source = path.read_bytes()
        text = source.decode()
        try:
            path.write_bytes(mutant.apply(text).encode())
            limit = 5 * baseline.seconds + _MORE_SECONDS
            done = self._run(part, limit, stop=True, first=baseline.first_for(mutant, text))
        finally:
            path.write_bytes(source)
        status = {None: "timeout", 0: "survived"}.get(done["code"], "killed")
        return Result(part.name, mutant, mutant.changed_lines(text), status, done["seconds"], done["failed"])

    def _run(self, part: Part, seconds: float, **more: Any) -> dict[str, Any]:
        process = self._processes[part.python]
        places = {name: str(self._beside / name) for name in ("report", "output", "temporary")}
        job = {
            "tests": part.tests,
            "without": part.without,
            "seconds": seconds,
            "stop": False,
            "first": [],
            "trace": [],
            **places,
            **more,
        }
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise MutationError(
                f"{part.python} ended unexpectedly: {(self._beside / 'worker.log').read_text()[-3000:]}"
            )
        result: dict[str, Any] = json.loads(answer)
        return result


@contextmanager
def _copies(parts: Sequence[Part], root: Path, copy: Callable[[Path], Path], count: int) -> Iterator[list[_Copy]]:
    with ExitStack() as stack:
        copies = []
        for number in range(count):
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"mutants-{number}-"))).resolve()
            folder = copy(place / "project")
            if (root / ".venv").exists():
                (folder / ".venv").symlink_to(root / ".venv")
            _compile(folder, parts)
            made = _Copy(folder, root, {part.python for part in parts})
            stack.callback(made.close)
            copies.append(made)
        yield copies


def _compile(folder: Path, parts: Sequence[Part]) -> None:
    """Compiles the project, so that no child has to, and deletes the byte code of files that will be mutated."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", folder], check=True, stdout=subprocess.DEVNULL)
    for file in {file for part in parts for file in part.sources}:
        for compiled in (folder / file).parent.glob(f"__pycache__/{Path(file).stem}.*.pyc"):
            compiled.unlink()
