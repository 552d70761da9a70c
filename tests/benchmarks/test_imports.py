"""The layout of benchmarks/: commands on top of `reporting`, `reporting` on top of `harness`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import launch
from serve.config.settings import ROOT

BENCHMARKS = ROOT / "benchmarks"
COMMANDS = sorted(path for path in BENCHMARKS.glob("*.py") if path.name != "__init__.py")
# Each may import what stands in a later row, and itself. Peers' servers run in environments without the others.
FLOORS = ({path.stem for path in COMMANDS}, {"reporting"}, {"harness"}, {"baselines", "peer_servers"})
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
START = ["if not __package__:", 'import_module("harness.launch").start(']


def part_of(module: Path) -> str:
    return module.relative_to(BENCHMARKS).parts[0].removesuffix(".py")


@pytest.mark.parametrize("module", sorted(BENCHMARKS.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_modules_import_only_towards_the_bottom(module: Path) -> None:
    part = part_of(module)
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.startswith("benchmarks."):
                other = name.split(".")[1]
                assert other == part or FLOOR[other] > FLOOR[part], f"{part} imports {name}"
            assert name != "benchmarks", f"{part} imports from benchmarks itself"


def test_every_command_starts_by_its_path_and_nothing_else_does() -> None:
    for module in BENCHMARKS.rglob("*.py"):
        source = module.read_text(encoding="utf-8")
        assert [line in source for line in START] == [module in COMMANDS] * 2 or module.name == "launch.py", module


@pytest.mark.parametrize(
    ("name", "environment"), [("sessions", "runtime"), ("folder", "runtime"), ("accuracy", "export")]
)
def test_a_command_without_its_environment_says_how_to_make_it(name: str, environment: str, tmp_path: Path) -> None:
    (tmp_path / "benchmarks/harness").mkdir(parents=True)
    for path in (f"benchmarks/{name}.py", "benchmarks/harness/launch.py"):
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"{name}: .venv/{environment} is missing; make it with python3 requirements/install.py"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["sessions", "event_loop", "worker_processes"])
def test_a_command_finds_its_environment_from_any_folder_and_python(name: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).resolve()), str(ROOT / f"benchmarks/{name}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"usage: python benchmarks/{name}.py"), done.stderr


def test_a_command_runs_again_in_its_environment_unless_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(launch.os, "execv", lambda python, command: started.append((python, command)))
    monkeypatch.setattr(sys, "path", ["benchmarks", "elsewhere"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "benchmarks/folder.py", "--photos", "x"])
    environment = ROOT / ".venv/runtime"
    for prefix in ("/usr", str(environment)):
        monkeypatch.setattr(sys, "prefix", prefix)
        launch.start("runtime")
    python = environment / "bin/python"
    assert started == [(python, [str(python), "benchmarks/folder.py", "--photos", "x"])]
    assert sys.path == [str(ROOT), "elsewhere"]
