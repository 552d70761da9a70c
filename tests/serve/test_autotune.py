"""`python -m serve autotune`: what it prints, what it chooses, what it saves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve.commands.autotune import Choice, _choose, measure, report, save
from serve.config.settings import ROOT, load_config
from serve.errors import ConfigError
from tests.project_copy import copy_project


def autotune(*arguments: str, folder: Path, checkout: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return serve("autotune", *arguments, folder=folder, checkout=checkout)


def max_files(folder: Path, checkout: Path) -> list[str]:
    """Runs `config` and returns what it says of one setting: value and source."""
    lines = serve("config", folder=folder, checkout=checkout).stdout.splitlines()
    return next(line.split()[1:] for line in lines if line.startswith("max_files "))


def serve(*arguments: str, folder: Path, checkout: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command of this checkout in a folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "SERVE_CONFIG"}
    return subprocess.run(
        [sys.executable, "-m", "serve", *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_printed_settings_are_those_saved_in_the_file(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    done = autotune("--model", str(tiny_model), "--write", "--config", str(path), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "images/s" in done.stdout
    assert re.search(r"^tiny\.onnx on \d+ CPUs \(.*\), engine cpu \(.+\)$", done.stdout, re.MULTILINE)
    assert f"Saved in {path}; the server reads it if started with --config {path}.\n" in done.stdout
    config = load_config(["--config", str(path)], {})
    here = len(os.sched_getaffinity(0))
    assert f"streams = {config.streams or here}  #" in done.stdout
    assert f"intra_op_threads = {config.intra_op_threads or here}  #" in done.stdout


def test_without_write_nothing_is_saved(tiny_model: Path, tmp_path: Path) -> None:
    assert autotune("--model", str(tiny_model), "--threads", "1", folder=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_checkout_has_a_settings_file_of_its_own_wherever_the_command_runs(tiny_model: Path, tmp_path: Path) -> None:
    clone = copy_project(tmp_path / "clone")
    done = autotune("--model", str(tiny_model), "--threads", "1", "--write", folder=tmp_path, checkout=clone)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"Saved in {clone / 'serve.toml'}; the server reads it.\n")
    (clone / "serve.toml").write_text("max_files = 3\n")
    assert max_files(folder=tmp_path, checkout=clone) == ["3", "file", str(clone / "serve.toml")]


def test_a_folder_in_which_a_command_runs_cannot_change_its_settings(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text("max_files = 3\n")
    assert max_files(folder=tmp_path, checkout=ROOT) == ["32", "default"]


def test_without_a_checkout_the_file_to_write_has_to_be_named(tiny_model: Path, tmp_path: Path) -> None:
    clone = copy_project(tmp_path / "clone")
    (clone / "pyproject.toml").unlink()  # as in the wheel
    (clone / "serve.toml").write_text("max_files = 3\n")
    assert max_files(folder=tmp_path, checkout=clone) == ["32", "default"]
    done = autotune("--model", str(tiny_model), "--write", folder=tmp_path, checkout=clone)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "serve: --write needs --config FILE, the settings file to save in; it may be a new one\n"


def test_a_failure_is_one_line_and_status_2(tmp_path: Path, tiny_model: Path) -> None:
    done = autotune("--model", "none.onnx", folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "none.onnx" in done.stderr
    done = autotune("--model", str(tiny_model), "--threads", "1", "--write", "--config", "/proc/none", folder=tmp_path)
    assert done.returncode == 2
    assert "settings file /proc/none" in done.stderr


def test_every_power_of_two_and_all_cpus_are_tried_in_turn(tiny_model: Path) -> None:
    shares: list[float] = []
    alone, loaded = measure(tiny_model, 3, "cpu", shares.append)
    assert list(alone.figures) == list(loaded.figures) == [1, 2, 3]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert (alone.setting, loaded.setting) == ("intra_op_threads", "streams")


@pytest.mark.parametrize(
    ("unit", "figures", "chosen"),
    [
        ("ms", {1: 20.0, 2: 11.0}, 2),
        ("ms", {1: 20.0, 2: 11.0, 4: 14.0}, 2),
        ("ms", {1: 20.0, 2: 11.0, 4: 11.2}, 4),  # within noise of the default
        ("images/s", {1: 50.0, 2: 99.0, 4: 80.0}, 2),
        ("images/s", {1: 50.0, 2: 99.0, 4: 98.0}, 4),
    ],
)
def test_a_setting_differs_from_its_default_only_for_a_gain(unit: str, figures: dict[int, float], chosen: int) -> None:
    choice = _choose("any", unit, figures)
    assert choice.chosen == chosen
    assert choice.gain >= 1


def test_the_report_has_the_gain_of_a_choice() -> None:
    lines = report([Choice("streams", "images/s", {1: 50.0, 2: 100.0, 4: 80.0}, 4, 2)])
    assert lines[-1] == "streams = 2  # 1.25 times as fast as the default"


def test_saving_changes_only_its_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('# mine\nport = 6000\n  "streams" = 9  # old\nintra_op_threads=1\nhost = "0.0.0.0"')
    save(path, {"streams": 2, "intra_op_threads": None})
    assert path.read_text() == '# mine\nport = 6000\nhost = "0.0.0.0"\nstreams = 2\n'
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="no such file"):
        save(tmp_path / "none" / "serve.toml", {"streams": 2})
    with pytest.raises(ConfigError, match="/dev/null: not a regular file"):
        save(Path(os.devnull), {"streams": 2})
