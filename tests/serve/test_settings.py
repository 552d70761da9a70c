"""Any text in a flag, a variable or the settings file gives settings or an error of one line."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve.config.environment import unknown_variables
from serve.config.settings import MODELS, ROOT, Config, load_config
from serve.errors import ConfigError, StartError
from serve.model.files import find_model
from serve.printable import one_line

NAMES = [setting.name for setting in fields(Config)]
# Arguments and variables cannot contain NULs, but a TOML file can.
WORDS = st.text(max_size=30) | st.sampled_from(
    ["", "\0", "a\0b", "\x1b[2J", "\u202e", "-1", "1e3", "nan", "9" * 5000, "0" * 5000, "٣", "a" * 70_000, "http://\0"]
)
WRITTEN = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.booleans().map(lambda value: str(value).lower()),
    WORDS.map(
        lambda word: '"' + "".join(f"\\U{ord(each):08x}" for each in word if not 0xD800 <= ord(each) < 0xE000) + '"'
    ),
    st.sampled_from(
        ["9" * 5000, "0x" + "f" * 5000, "-0b" + "1" * 9000, "1e999", "-inf", "nan", "1979-05-27T07:32:00Z", "07:32:00"]
    ),
)
VALUES = st.recursive(
    WRITTEN,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda parts: f"[{','.join(parts)}]")
        | st.tuples(st.sampled_from(["a", "a.b.c", '"\\u001b"', "a" + ".a" * 3000]), inner).map(
            "{{{0[0]}={0[1]}}}".format
        )
    ),
)


def outcome(make: Callable[[], Config]) -> Config | None:
    """Returns the settings, or None for an error of one line; any other exception fails the test."""
    try:
        return make()
    except ConfigError as error:
        line = one_line(error)
        assert line.isprintable()
        assert len(line) < 5000
        return None


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(NAMES), word=WORDS)
@example(name="model", word=".onnx")
def test_any_word_in_a_flag_or_a_variable(name: str, word: str) -> None:
    found = [
        outcome(lambda: load_config([f"--{name.replace('_', '-')}={word}"], {})),
        outcome(lambda: load_config([], {f"SERVE_{name.upper()}": word})),
    ]
    assert found[0] == found[1]
    if name == "model" and found[0]:
        model = found[0].model
        if model.endswith(".onnx"):  # a path, which is opened later
            assert find_model(model, "auto", MODELS / "none") == Path(model)
        else:
            with pytest.raises(StartError):
                find_model(model, "auto", MODELS / "none")


@settings(max_examples=300, deadline=None)
@given(entries=st.lists(st.tuples(st.sampled_from([*NAMES, "prot", '"\\u001b"', "port.a"]), VALUES), max_size=3))
@example([("port", "[" * 5000)])
@example([("cors_origins", "[" * 5000 + "]" * 5000)])
@example([("port" + ".a" * 5000, "1")])
@example([("cors_origins", "[{" + "a" + ".a" * 5000 + "=1}]")])
@example([("port", "0x" + "f" * 5000)])
@example([("cors_origins", "[0x" + "f" * 5000 + "]")])
@example([("cors_origins", "[[[1]]]")])
def test_any_value_in_the_settings_file(entries: list[tuple[str, str]]) -> None:
    check_file("\n".join(f"{name} = {value}" for name, value in entries).encode("utf-8"))


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=300) | st.text(alphabet="[]{}=.,'\"#\n\\ax0", max_size=300).map(str.encode))
def test_any_bytes_in_the_settings_file(content: bytes) -> None:
    check_file(content)


def check_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "settings.toml")
        path.write_bytes(content)
        outcome(lambda: load_config(["--config", str(path)], {}))


def test_the_worst_settings_file_takes_seconds_at_most(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    started = time.monotonic()
    for worst in ("port." + "a." * 16_000 + "a = 1", "[" + "a." * 16_000 + "a]", "[" * 32_000, "a." * 10**6 + "a = 1"):
        path.write_text(worst)
        assert outcome(lambda: load_config(["--config", str(path)], {})) is None
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("setting", ["--model", "--class-index", "--api-keys-file", "--config"])
@pytest.mark.parametrize("value", ["a" * 70_000, "\x1b[2J\x9b31m\x7f", "/dev/zero", "/", "\udcff"])
def test_a_server_that_cannot_start_ends_with_2_and_one_line(setting: str, value: str) -> None:
    environment = {**os.environ, "SERVE_PORT": "0", "SERVE_MODEL": str(ROOT / "tests/data/tiny.onnx")}
    done = subprocess.run(
        [sys.executable, "-m", "serve", setting, value],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("serve: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.removesuffix("\n").isprintable()


def test_a_variable_of_any_length_is_reported_quickly() -> None:
    names = {"SERVE_" + part * (120_000 // len(part)) + "-": "x" for part in ("A", "_SERVICE_PORT", "_PORT_1", "PORT_")}
    started = time.monotonic()
    told = unknown_variables(names)
    assert time.monotonic() - started < 2
    assert len(told) == len(names)
    assert all(len(line) < 500 for line in told)
