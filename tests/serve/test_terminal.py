"""No flag, variable, file name, model or label can steer a terminal through a command's output."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.harness.progress import Progress
from serve.config.settings import ROOT
from tests.serve.conftest import PHOTOS
from tests.terminal import EVIL, control_characters, run
from tests.tiny_model import PATH as TINY_MODEL

SERVE = [sys.executable, "-m", "serve"]
WHERE = pytest.mark.parametrize("on_terminal", [False, True], ids=["pipe", "terminal"])
BYTES = "\udcff\udc9b2J"  # from a name that is not UTF-8, and a control character in Latin-1

WRITTEN = "".join(f"\\u{ord(each):04x}" for each in EVIL)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / f"pictures{EVIL}"
    folder.mkdir()
    shutil.copy(PHOTOS / "cat.jpg", folder / f"cat{EVIL}.jpg")
    shutil.copy(PHOTOS / "cat.jpg", folder / f"cat{BYTES}.jpg")
    (folder / f"none{EVIL}.jpg").write_text("no picture")
    return folder


@WHERE
@pytest.mark.parametrize("form", ["--jsonl", "--csv", "--table"])
def test_names_of_files(pictures: Path, form: str, on_terminal: bool) -> None:
    command = [*SERVE, "classify", "--model", TINY_MODEL, pictures, f"none{EVIL}", form]
    status, said = run(command, on_terminal=on_terminal)
    assert status == 1
    assert "2 classified, 2 with problems" in said
    if form == "--csv" and not on_terminal:  # CSV is for programs, and --resume reads it back
        assert EVIL in said
        said = said[said.index("4 files in") :]
    assert control_characters(said) == []


@pytest.mark.parametrize("form", ["--jsonl", "--csv"])
def test_the_name_of_an_output(pictures: Path, tmp_path: Path, form: str) -> None:
    output = tmp_path / f"output{EVIL}"
    command = [*SERVE, "classify", "--model", TINY_MODEL, pictures, form, "--output", output]
    for arguments, expected in (([], 1), ([], 2), (["--resume"], 1), (["--resume", "--top-k", "3"], 2)):
        status, said = run([*command, *arguments], on_terminal=True)
        assert (status, control_characters(said)) == (expected, []), said


def test_files_have_each_name_as_it_is(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "output.csv"
    run([*SERVE, "classify", "--model", TINY_MODEL, pictures, "--output", output])
    assert EVIL in output.read_bytes().decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    "arguments",
    [
        [EVIL],
        [f"--{EVIL}"],
        ["--port", "5000", EVIL],
        ["--port", EVIL],
        ["--model", EVIL],
        ["--model", f"{EVIL}.onnx"],
        ["--class-index", EVIL],
        ["--config", EVIL],
        ["--api-keys-file", EVIL],
        ["--host", f"{EVIL}..{EVIL}"],
        ["--engine", EVIL],
        ["--cors-origins", EVIL],
        ["--log-format", EVIL],
        ["classify", EVIL, "--x\x1b[31m\x9b"],
        ["classify", "x", "--top-k", EVIL],
        ["classify", "x", "--model", EVIL],
        ["classify", "x", "--output", f"/none{EVIL}/x"],
        ["config", EVIL],
        ["config", "--model", EVIL, "--host", EVIL, "--class-index", EVIL, "--api-keys-file", EVIL],
        ["config", "--model", BYTES, "--host", BYTES],
        ["health", "--host", EVIL],
        ["health", "--host", BYTES],
        ["health", f"--{EVIL}"],
        ["autotune", f"--{EVIL}"],
        ["autotune", "--model", f"{EVIL}.onnx"],
    ],
)
def test_arguments(arguments: list[str]) -> None:
    status, said = run([*SERVE, *arguments], {"SERVE_MODEL": str(TINY_MODEL), "SERVE_PORT": "0"}, on_terminal=True)
    assert said.strip()
    assert status == (
        0 if arguments[0] == "config" and len(arguments) > 2 else 1 if arguments[1:2] == ["--host"] else 2
    )
    assert control_characters(said) == []


@pytest.mark.parametrize(
    "name", ["SERVE_CONFIG", "SERVE_PORT", "SERVE_MODEL", "SERVE_CLASS_INDEX", "SERVE_API_KEYS_FILE"]
)
def test_variables(name: str) -> None:
    settings = {"SERVE_MODEL": str(TINY_MODEL), "SERVE_PORT": "0", f"SERVE_{EVIL}": EVIL, name: EVIL}
    status, said = run(SERVE, settings, on_terminal=True)
    assert (status, control_characters(said)) == (2, []), said
    status, said = run([*SERVE, "config"], settings, on_terminal=True)
    assert "unknown setting SERVE_a\\x1b[31m" in said
    assert control_characters(said) == []


@WHERE
@pytest.mark.parametrize("text", [f'"{WRITTEN}" = 1', f'port = "{WRITTEN}"', f'model = ["{WRITTEN}"]', f'"{WRITTEN}'])
def test_the_settings_file(tmp_path: Path, text: str, on_terminal: bool) -> None:
    path = tmp_path / f"settings{EVIL}.toml"
    path.write_text(text, encoding="utf-8")
    status, said = run([*SERVE, "config", "--config", path], on_terminal=on_terminal)
    assert (status, said.count("\n"), control_characters(said)) == (2, 1, []), said


def test_labels_and_model_metadata(tmp_path: Path) -> None:
    index = json.loads((ROOT / "imagenet_class_index.json").read_text(encoding="utf-8"))
    index["3"][1] = EVIL
    (tmp_path / "index.json").write_text(json.dumps(index))
    command = [*SERVE, "classify", PHOTOS / "cat.jpg"]
    status, said = run([*command, "--model", TINY_MODEL, "--class-index", tmp_path / "index.json"], on_terminal=True)
    assert (status, control_characters(said)) == (2, []), said
    assert "the label of class 3 is" in said
    model, output = tmp_path / f"model{EVIL}.onnx", tmp_path / "output"
    model.write_bytes(TINY_MODEL.read_bytes().replace(b'"tiny"', b'"\xc2\x9b\x7fy"'))
    status, said = run([*command, "--model", model], on_terminal=True)
    assert "name='\\x9b\\x7fy'; set it to" in said
    assert (status, control_characters(said)) == (2, [])
    model.write_bytes(TINY_MODEL.read_bytes().replace(b'"tiny"', b'"mine"'))
    run([*command, "--model", model, "--output", output])
    output.write_bytes(output.read_bytes().replace(b'"mine"', b'"\xc2\x9b\x7fy"'))
    status, said = run([*command, "--model", TINY_MODEL, "--output", output, "--resume"], on_terminal=True)
    assert "is from the model \\x9b\\x7fy, not tiny" in said
    assert (status, control_characters(said)) == (2, [])


def test_autotune(tmp_path: Path) -> None:
    shutil.copy(TINY_MODEL, model := tmp_path / f"model{EVIL}.onnx")
    (path := tmp_path / f"settings{EVIL}.toml").touch()
    command = [*SERVE, "autotune", "--model", model, "--threads", "1", "--config", path, "--write"]
    status, said = run(command, on_terminal=True)
    assert "Saved in " in said
    assert (status, control_characters(said)) == (0, [])


@pytest.mark.parametrize(
    "arguments", [[EVIL], [f"--{EVIL}"], ["--weights", EVIL], ["--weights", "a" * 70_000], ["--weights", TINY_MODEL]]
)
def test_the_weights_are_checked_before_an_export(arguments: list[object]) -> None:
    nowhere = {"TORCH_HOME": f"/none{EVIL}"}
    status, said = run([sys.executable, "export/prepare.py", *arguments], nowhere, on_terminal=True)
    assert (status, control_characters(said)) == (0 if TINY_MODEL in arguments else 2, []), said


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("latency", ["--compare", EVIL, EVIL], 1),
        ("latency", [f"--{EVIL}"], 2),
        ("peers", [f"--{EVIL}"], 2),
        ("event_loop", [f"--{EVIL}"], 2),
        ("harness.load", ["--url", "http://127.0.0.1", "--photo", "x", f"--{EVIL}"], 2),
        ("folder", ["--photos", "x", f"--{EVIL}"], 2),
        ("sizes", ["--weights", "x", f"--{EVIL}"], 2),
        ("decoding", ["--photos", "{folder}", "--model", TINY_MODEL], 2),
        ("harness.openvino_engine", ["--photos", "{folder}", "--output", "x"], 1),
    ],
)
def test_benchmarks(tmp_path: Path, name: str, arguments: list[object], expected: int) -> None:
    (folder := tmp_path / EVIL).mkdir()
    given = [folder if each == "{folder}" else each for each in arguments]
    command = ["-m", f"benchmarks.{name}"] if "." in name else [f"benchmarks/{name}.py"]
    status, said = run([sys.executable, *command, *given])
    assert (status, control_characters(said)) == (expected, []), said


def test_tables_of_earlier_results_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(2)
    progress.step(EVIL, 1)
    progress.say(f"one\n{EVIL}")
    printed = capsys.readouterr()
    assert control_characters(printed.out + printed.err) == []
    assert printed.out.startswith("one\na")
