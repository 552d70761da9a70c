"""Reads flags, environment and settings file once, into one frozen `Config`.

Each field is one setting: `--max-files` on the command line, else `SERVE_MAX_FILES` in the environment, else
`max_files` in a TOML file, else its default.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from serve import __version__
from serve.config.cpus import ThreadPlan, cpu_budget
from serve.config.parsers import (
    Parser,
    file_path,
    format_value,
    formats,
    host_names,
    integer,
    non_empty,
    on_off,
    one_of,
    origins,
)
from serve.config.settings_file import quoted, read_settings_file
from serve.errors import ConfigError
from serve.printable import ArgumentParser

ROOT: Final = Path(__file__).resolve().parents[2]
MODELS: Final = ROOT / "models"
# Only a checkout has one, in its own folder, so that no other folder from which a command is run can change settings.
SETTINGS_FILE: Final = ROOT / "serve.toml" if (ROOT / "pyproject.toml").is_file() else None
_NAME: Final = "densenet-server"  # also of the wheel's command
_PROGRAM: Final = _NAME if Path(sys.argv[0]).name == _NAME else "python -m serve"


def _setting(default: Any, parse: Parser, help_text: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": help_text})


@dataclass(frozen=True)
class Config:
    """All settings of a server; units are in the names."""

    host: str = _setting("127.0.0.1", non_empty, "address to listen on; 0.0.0.0: every interface")
    port: int = _setting(5000, integer(0, 65535), "TCP port to listen on; 0: a free one, which the log names")
    model: str = _setting(
        "auto",
        non_empty,
        "densenet121, efficientnet_lite0, an .onnx file, or auto: densenet121 if exported, else the other",
    )
    models: Path | None = _setting(
        None,
        file_path,
        "folder to look for models in before the server's own; none: ./models for a model named with --model",
    )
    model_variant: str = _setting(
        "auto", one_of("auto", "int8", "fp32"), "int8, fp32, or auto: int8 if available, else fp32"
    )
    class_index: Path | None = _setting(
        None, file_path, "file of labels, text, JSON or CSV; none: those in the model file, or ImageNet's"
    )
    workers: int = _setting(
        1, integer(1, 256), "server processes, which share the port and the CPUs; every limit is per process"
    )
    threads: int = _setting(0, integer(0, 1024), "CPUs to use at most; 0: all that affinity and cgroup quota allow")
    streams: int = _setting(0, integer(0, 1024), "images processed at once under load, each on one CPU; 0: one per CPU")
    intra_op_threads: int = _setting(0, integer(0, 1024), "threads for the inference of a single image; 0: one per CPU")
    engine: str = _setting(
        "auto",
        one_of("auto", "cpu", "openvino", "cuda"),
        "cpu, openvino, cuda, or auto: openvino if it is installed, its file is there and the CPU has AMX, else cpu",
    )
    engine_cache: Path | None = _setting(
        None, file_path, "folder where openvino keeps the compiled model, so that it starts faster"
    )
    max_batch: int = _setting(
        0, integer(0, 256), "most waiting images that are computed at once; 0: 1 on CPUs, 16 with cuda"
    )
    batch_wait_ms: int = _setting(0, integer(0, 10_000), "milliseconds that a batch waits for more images")
    decode: str = _setting(
        "fast",
        one_of("fast", "exact"),
        "fast: decode large JPEGs at a reduced scale and resize only the crop; exact: same pixels as torchvision",
    )
    max_queue: int = _setting(64, integer(1, 100_000), "images that may wait for a CPU; more are refused")
    request_timeout_ms: int = _setting(
        10_000, integer(1, 86_400_000), "milliseconds from full upload to answer; X-Request-Timeout-Ms asks for less"
    )
    grace_seconds: int = _setting(
        9, integer(1, 86_400), "seconds that requests in flight get after SIGTERM; docker stop kills after 10"
    )
    max_connections: int = _setting(
        1000, integer(1, 1_000_000), "most connections; beyond them the one idle longest is closed"
    )
    keep_alive_seconds: int = _setting(75, integer(1, 86_400), "seconds a connection may be idle between requests")
    head_timeout_ms: int = _setting(
        10_000, integer(1, 86_400_000), "milliseconds for request line and headers to arrive"
    )
    body_timeout_ms: int = _setting(
        20_000, integer(1, 86_400_000), "milliseconds for a request's body to arrive; each 64 KiB adds one second"
    )
    max_upload_bytes: int = _setting(
        128 * 2**20, integer(1, 2**40), "most bytes that all unanswered uploads may hold; more are refused"
    )
    max_request_bytes: int = _setting(20 * 2**20, integer(1, 2**40), "most bytes in a request's body or a file")
    max_pixels: int = _setting(50_000_000, integer(1, 2**40), "most pixels in an image, by its header")
    max_frames: int = _setting(1000, integer(1, 2**40), "most frames in an animation; only the first is classified")
    max_decode_ms: int = _setting(1500, integer(1, 86_400_000), "most milliseconds of CPU time to decode an image")
    sandbox: str = _setting(
        "auto",
        one_of("auto", "required", "off"),
        "auto: seal the decoders if the system can; required: else do not start; off: none, for debugging only",
    )
    decoder_memory_mb: int = _setting(
        0, integer(0, 2**20), "MB that decoding an image may take; 0: what an image of the most pixels needs"
    )
    decoder_reuse: tuple[str, ...] = _setting(
        ("jpeg", "png"), formats, "formats whose decoder takes more images, separated by commas; all, or none"
    )
    max_files: int = _setting(32, integer(1, 10_000), "most files in a request")
    exif_orientation: bool = _setting(True, on_off, "rotate images upright by EXIF: on or off")
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        host_names,
        "host names the server answers to besides IP addresses and loopback names, separated by commas; *.example.org "
        "and * are allowed; none: any host, or loopback only if the server listens on loopback only",
    )
    cors_origins: tuple[str, ...] = _setting(
        (),
        origins,
        "origins whose pages may call the server from a browser, separated by commas, as browsers send them: "
        "https://example.org, capacitor://localhost, null",
    )
    api_keys_file: Path | None = _setting(
        None, file_path, "file of API keys, one per line, required by /upload and /v2; reread when it changes"
    )
    server_timing: bool = _setting(False, on_off, "report the time of each stage in a Server-Timing header: on or off")
    log_format: str = _setting(
        "auto", one_of("auto", "text", "json"), "text, json, or auto: text on a terminal, else json"
    )
    log_level: str = _setting("info", one_of("debug", "info", "warning", "error"), "debug, info, warning or error")

    @property
    def thread_plan(self) -> ThreadPlan:
        """The thread counts that these settings give on the CPUs available now."""
        budget = cpu_budget(self.threads)
        count = budget.count
        return ThreadPlan(budget, min(self.streams or count, count), min(self.intra_op_threads or count, count))


def load_config(
    arguments: Sequence[str], environment: Mapping[str, str], parser: argparse.ArgumentParser | None = None
) -> Config:
    """Returns the settings as `load_settings` does, without their sources."""
    return load_settings(arguments, environment, parser)[0]


def load_settings(
    arguments: Sequence[str], environment: Mapping[str, str], parser: argparse.ArgumentParser | None = None
) -> tuple[Config, dict[str, str]]:
    """Merges all sources.

    Args:
        parser: from `argument_parser`, for a command with flags of its own. As always with argparse, `--help` and
            unknown flags end the process.

    Returns:
        The settings, and by name the source of each that is not a default.

    Raises:
        ConfigError: a setting is invalid; the message names it and its value.
    """
    flags = vars((parser or argument_parser()).parse_args(arguments))
    path, entries = read_settings_file(
        flags["config"] or environment.get("SERVE_CONFIG") or None,
        SETTINGS_FILE,
        {setting.name: setting.default for setting in fields(Config)},
    )
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in fields(Config):
        flag, variable = setting_names(setting.name)
        if flags[setting.name] is not None:
            kind, source, text = f"flag {flag}", flag, flags[setting.name]
        elif variable in environment:
            kind, source, text = f"environment {variable}", variable, environment[variable]
        elif setting.name in entries:
            kind, source, text = f"file {path}", f"{path}: {setting.name}", entries[setting.name]
        else:
            continue
        try:
            values[setting.name] = setting.metadata["parse"](text)
        except ValueError as error:
            raise ConfigError(f"{source}={quoted(text)}: {error}") from error
        sources[setting.name] = kind
    config = Config(**values)
    for small, large in (("max_files", "max_queue"), ("max_request_bytes", "max_upload_bytes")):
        if getattr(config, small) > getattr(config, large):
            raise ConfigError(
                f"{small}={getattr(config, small)} is more than {large}={getattr(config, large)}: a request of that "
                f"size could never be accepted; lower {small} or raise {large}"
            )
    return config, sources


def setting_names(setting: str) -> tuple[str, str]:
    """Returns the flag and the environment variable of a setting."""
    return f"--{setting.replace('_', '-')}", f"SERVE_{setting.upper()}"


def argument_parser(
    command: str = "",
    description: str = "Classify images over HTTP: curl -F 'file=@cat.jpg' http://127.0.0.1:5000/upload",
    usage: str = "[COMMAND]",
) -> argparse.ArgumentParser:
    """Makes a parser with a flag for each setting.

    Args:
        command: the command's name, empty for the server.
        usage: the command's own arguments, as its usage line shows them.
    """
    prog = f"{_PROGRAM} {command}".rstrip()
    parser = ArgumentParser(
        prog=prog,
        # Thirty flags would push the error that follows them off the screen.
        usage=f"{prog} {f'{usage} ' if usage else ''}[--SETTING VALUE ...]   (--help lists the settings)",
        description=description,
        epilog="Each setting is also an environment variable (in brackets) and an entry of the TOML file.\n"
        "Flags override variables; variables override the file.\n\n"
        "commands:\n  serve     serve, as without a command\n"
        "  classify  classify files without a server\n  autotune  find the best thread settings\n"
        "  health    check whether a server is ready\n  config    print each setting and its source\n\n"
        "exit status of the server: 0 after Ctrl-C or SIGTERM, 2 if it cannot start",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    settings = parser.add_argument_group("settings, shared by all commands; each uses those that concern it")
    parser.add_argument("--version", action="version", version=f"{_NAME} {__version__}")
    text = "TOML file with settings [SERVE_CONFIG, default: a checkout's own serve.toml, if it exists]"
    settings.add_argument("--config", metavar="FILE", help=text)
    for setting in fields(Config):
        flag, variable = setting_names(setting.name)
        text = f"{setting.metadata['help']} [{variable}, default: {format_value(setting.default)}]"
        settings.add_argument(flag, metavar="VALUE", help=text)
    return parser
