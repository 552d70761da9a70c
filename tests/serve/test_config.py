"""Settings: flags over environment over defaults, and errors that name the key and the value."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from serve.config.environment import unknown_variables
from serve.config.settings import ROOT, SETTINGS_FILE, Config, load_config
from serve.errors import ConfigError
from tests.documents import DOCUMENTS
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL


def test_defaults_are_the_contracts() -> None:
    config = load_config([], {})
    assert (config.host, config.port) == ("127.0.0.1", 5000)
    assert config.max_request_bytes == 20 * 1024 * 1024
    assert config.max_pixels == 50_000_000
    assert config.max_files == 32
    assert config.exif_orientation is True
    assert config.cors_origins == ()


# A default as the documents state it: "`--max-queue` (64)", "`SERVE_MAX_PIXELS` (50 million)", "20 MiB (`--max-...`)".
UNITS = r"(?: (MiB|s|million))?"
BEFORE = re.compile(r"`(?:--|SERVE_)([\w-]+)` \(([\d.,]*\d)" + UNITS + r"[),]")
AFTER = re.compile(r"(\d[\d.,]*)" + UNITS + r"(?: (?:files|frames|pixels|images|connections))? \(`--([\w-]+)`\)")


def stated_defaults(text: str) -> list[tuple[str, float]]:
    """Returns the settings whose defaults a document states, with the values in the settings' own units."""
    words = " ".join(text.split())
    found = [(name, number, unit) for name, number, unit in BEFORE.findall(words)]
    found += [(name, number, unit) for number, unit, name in AFTER.findall(words)]
    values = []
    for name, number, unit in found:
        setting = name.lower().replace("-", "_")
        scale = {"MiB": 2**20, "million": 10**6, "s": 1000 if setting.endswith("_ms") else 1}.get(unit, 1)
        values.append((setting, float(number.replace(",", "")) * scale))
    return values


def test_the_documents_state_the_defaults() -> None:
    stated = [(path.name, *each) for path in DOCUMENTS for each in stated_defaults(path.read_text(encoding="utf-8"))]
    defaults = {setting.name: setting.default for setting in fields(Config)}
    assert [each for each in stated if defaults[each[1]] != each[2]] == []
    assert {setting for name, setting, _ in stated if name == "SECURITY.md"} >= {
        name for name in defaults if name.startswith("max_")
    }
    assert len(stated) > 20


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("`--max-queue` (64) images may wait", "max_queue", 64),
        ("`--grace-seconds` (9, because", "grace_seconds", 9),
        ("`--request-timeout-ms` (10,000) starts", "request_timeout_ms", 10_000),
        ("`SERVE_MAX_PIXELS` (50\nmillion)", "max_pixels", 50_000_000),
        ("decoding 1.5 s (`--max-decode-ms`)", "max_decode_ms", 1500),
        ("20 MiB (`--max-request-bytes`)", "max_request_bytes", 20 * 2**20),
        ("1000 frames (`--max-frames`)", "max_frames", 1000),
    ],
)
def test_a_default_in_a_document_is_found(text: str, setting: str, value: float) -> None:
    assert stated_defaults(text) == [(setting, value)]


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {"SERVE_PORT": "6000", "SERVE_MAX_FILES": "3"}
    config = load_config(["--port", "7000"], environment)
    assert (config.port, config.max_files, config.host) == (7000, 3, "127.0.0.1")


def test_every_setting_is_a_flag_and_a_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        load_config(["--help"], {})
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for setting in fields(Config):
        assert f"--{setting.name.replace('_', '-')}" in text
        assert f"SERVE_{setting.name.upper()}" in text


def test_settings_are_read_in_their_own_types() -> None:
    environment = {
        "SERVE_EXIF_ORIENTATION": "off",
        "SERVE_CORS_ORIGINS": "https://a.example, http://localhost:3000",
        "SERVE_MODEL": "some/model.onnx",
    }
    config = load_config([], environment)
    assert config.exif_orientation is False
    assert config.cors_origins == ("https://a.example", "http://localhost:3000")
    assert config.model == "some/model.onnx"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--port", "70000"], {}, "--port='70000': not a whole number from 0 to 65535"),
        ([], {"SERVE_PORT": "http"}, "SERVE_PORT='http': not a whole number from 0 to 65535"),
        ([], {"SERVE_MAX_FILES": "0"}, "SERVE_MAX_FILES='0': not a whole number from 1 to 10000"),
        ([], {"SERVE_MAX_FILES": "١"}, "not a whole number"),
        (["--exif-orientation", "yes"], {}, "--exif-orientation='yes': not one of on, off"),
        (["--log-format", "xml"], {}, "--log-format='xml': not one of auto, text, json"),
        (["--cors-origins", "a.example"], {}, "'a.example' matches no page; write https://a.example"),
        (["--model", ""], {}, "--model='': must not be empty"),
    ],
)
def test_an_error_names_the_key_the_value_and_what_is_allowed(
    arguments: list[str], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(arguments, environment)


def test_a_file_is_read_below_the_environment_and_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        "port = 6000\nmax_files = 3\nmax_pixels = 7\nexif_orientation = false\n"
        'cors_origins = ["https://a.example", "https://b.example"]\n'
    )
    config = load_config(["--config", str(path), "--port", "7000"], {"SERVE_MAX_FILES": "4"})
    assert (config.port, config.max_files, config.max_pixels, config.exif_orientation) == (7000, 4, 7, False)
    assert config.cors_origins == ("https://a.example", "https://b.example")
    assert load_config([], {"SERVE_CONFIG": str(path)}).port == 6000


def test_the_checkouts_own_file_is_read_if_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SETTINGS_FILE == ROOT / "serve.toml"
    monkeypatch.setattr("serve.config.settings.SETTINGS_FILE", tmp_path / "serve.toml")
    assert load_config([], {}).port == 5000
    assert load_config([], {"SERVE_CONFIG": ""}).port == 5000
    (tmp_path / "serve.toml").write_text("port = 6000\n")
    assert load_config([], {}).port == 6000
    monkeypatch.setattr("serve.config.settings.SETTINGS_FILE", None)  # as in the wheel
    assert load_config([], {}).port == 5000


def test_the_version_is_printed_and_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with pytest.raises(SystemExit) as leaving:
        load_config(["--version"], {})
    assert (leaving.value.code, capsys.readouterr().out) == (0, f"{stated['name']} {stated['version']}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown setting prot; --help lists the settings"),
        ("port = high", "is not TOML"),
        ("port = 70000", "settings.toml: port='70000': not a whole number from 0 to 65535"),
        ("max_queue = 8", "max_files=32 is more than max_queue=8"),
        ("port = true", "port=True has the wrong type"),
        ('model = ["a", "b"]', r"model=\['a', 'b'\] has the wrong type"),
    ],
)
def test_a_mistake_in_a_file_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(["--config", str(path)], {})
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        load_config(["--config", "none.toml"], {})


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().port = 1  # type: ignore[misc]


def test_streams_and_intra_op_threads_stay_within_the_cpus_that_are_there() -> None:
    there = len(os.sched_getaffinity(0))
    for config in (Config(), Config(streams=1000, intra_op_threads=1000, threads=1000)):
        plan = config.thread_plan
        assert plan.streams == plan.intra_op_threads == plan.budget.count <= there
    plan = Config(threads=1, streams=2).thread_plan
    assert (plan.budget.count, plan.streams, plan.intra_op_threads) == (1, 1, 1)


def test_config_prints_each_setting_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("max_files = 3\nport = 6000\n")
    environment = {**os.environ, "SERVE_CONFIG": str(path), "SERVE_EXIF_ORIENTATION": "off"}
    command = [sys.executable, "-m", "serve", "config", "--port", "7000", "--cors-origins", "https://a.example"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert list(rows) == [*(setting.name for setting in fields(Config)), "decoders"]
    assert rows["decoders"] == ["sealed", "this system"]
    assert rows["port"] == ["7000", "flag --port"]
    assert rows["exif_orientation"] == ["off", "environment SERVE_EXIF_ORIENTATION"]
    assert rows["max_files"] == ["3", f"file {path}"]
    assert rows["max_pixels"] == ["50000000", "default"]
    assert rows["cors_origins"] == ["https://a.example", "flag --cors-origins"]
    assert rows["api_keys_file"] == ["none", "default"]
    done = subprocess.run([*command, "--max-files", "0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "serve: --max-files='0': not a whole number from 1 to 10000\n"


def test_config_survives_a_closed_output_pipe() -> None:
    command = f"{shlex.quote(sys.executable)} -m serve config | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_misspelt_variable_is_named_in_one_line() -> None:
    environment = {**os.environ, "SERVE_PORTT": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "serve", "config"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == "serve: unknown setting SERVE_PORTT in the environment; did you mean SERVE_PORT?\n"
    with running_server(
        sys.executable, "--model", str(TINY_MODEL), "--log-format", "json", environment={"SERVE_QUX": "3"}
    ) as server:
        warnings = [line["message"] for line in server.log if line["level"] == "warning"]
    assert warnings == ["unknown setting SERVE_QUX in the environment"]


def test_kubernetes_service_variables_are_not_reported_as_unknown() -> None:
    """For Services named "serve" and "serve-model": https://kubernetes.io/docs/concepts/services-networking/service."""
    links: dict[str, str] = {}
    for service in ("SERVE", "SERVE_MODEL"):
        links |= {
            f"{service}_SERVICE_HOST": "10.0.0.11",
            f"{service}_SERVICE_PORT": "80",
            f"{service}_SERVICE_PORT_HTTP": "80",
            f"{service}_PORT": "tcp://10.0.0.11:80",
            f"{service}_PORT_80_TCP": "tcp://10.0.0.11:80",
            f"{service}_PORT_80_TCP_PROTO": "tcp",
            f"{service}_PORT_80_TCP_PORT": "80",
            f"{service}_PORT_80_TCP_ADDR": "10.0.0.11",
        }
    assert (
        unknown_variables({**links, "SERVE_CONFIG": "x", "SERVE_MAX_FILES": "3", "PATH": "x", "RAY_SERVE_X": "1"}) == []
    )
    assert len(unknown_variables({"SERVE_MAX_FILE": "3", "SERVE_HOSTPORT": "x"})) == 2
