"""Flags, environment and file → one frozen `Config`, parsed once. Errors that leave here: `ConfigError`.

Each field is one setting: `--max-files` on the command line, else `SERVE_MAX_FILES` in the environment, else
`max_files` in a TOML file, else its default.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from serve.config.cpus import ThreadPlan, plan_threads
from serve.config.parsers import (
    Parser,
    host_names,
    integer,
    non_empty,
    on_off,
    one_of,
    origins,
    path_of,
    provider_names,
)
from serve.config.settings_file import DEFAULT_FILE, quoted, read_settings_file
from serve.errors import ConfigError
from serve.printable import ArgumentParser

ROOT: Final = Path(__file__).resolve().parents[2]


def _setting(default: Any, parse: Parser, help_text: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": help_text})


@dataclass(frozen=True)
class Config:
    """All settings of a server. Sizes are in bytes, pixels and counts as their names say."""

    host: str = _setting("127.0.0.1", non_empty, "address to listen on; 0.0.0.0 for every interface")
    port: int = _setting(5000, integer(0, 65535), "TCP port to listen on; 0 takes a free one and the log says which")
    model: str = _setting(
        "auto", non_empty, "densenet121, efficientnet_lite0, a file, or auto: densenet121 if exported, else the other"
    )
    model_variant: str = _setting(
        "auto", one_of("auto", "int8", "fp32"), "int8, fp32, or auto: int8 if its export let it pass"
    )
    class_index: Path = _setting(
        ROOT / "imagenet_class_index.json", path_of, "JSON file with the id and name of each class"
    )
    workers: int = _setting(
        1, integer(1, 256), "processes behind the port, each with its share of the CPUs; bounds hold for each"
    )
    threads: int = _setting(
        0, integer(0, 1024), "CPUs to compute on at most; 0: all that the process may use, by affinity and cgroup quota"
    )
    streams: int = _setting(
        0, integer(0, 1024), "pictures worked on side by side under load, each on one CPU; 0: threads"
    )
    intra_op_threads: int = _setting(0, integer(0, 1024), "threads that share a lone picture's inference; 0: threads")
    providers: tuple[str, ...] = _setting(
        ("cpu",),
        provider_names,
        "execution providers of onnxruntime, the first choice first; cuda,cpu for a GPU",
    )
    decode: str = _setting(
        "fast",
        one_of("fast", "exact"),
        "fast: large JPEGs at a reduced scale, and only what is kept is resized; exact: torchvision's pixels",
    )
    max_queue: int = _setting(64, integer(1, 100_000), "pictures that may wait for a CPU; more are refused")
    request_timeout_ms: int = _setting(
        10_000,
        integer(1, 86_400_000),
        "milliseconds from a complete upload to its answer; X-Request-Timeout-Ms asks for less",
    )
    grace_seconds: int = _setting(
        9, integer(1, 86_400), "seconds that SIGTERM leaves to requests in flight; docker stop kills after 10"
    )
    max_connections: int = _setting(
        1000, integer(1, 1_000_000), "connections there may be; for more, the one idle longest is closed"
    )
    keep_alive_seconds: int = _setting(75, integer(1, 86_400), "seconds that a connection may be idle between requests")
    head_timeout_ms: int = _setting(
        10_000, integer(1, 86_400_000), "milliseconds in which a request's line and headers have to come"
    )
    body_timeout_ms: int = _setting(
        20_000, integer(1, 86_400_000), "milliseconds in which its body has to come; one second more for each 64 KiB"
    )
    max_upload_bytes: int = _setting(
        128 * 2**20, integer(1, 2**40), "bytes that all uploads not yet answered may have together; more are refused"
    )
    max_request_bytes: int = _setting(20 * 2**20, integer(1, 2**40), "bytes a request's body may have")
    max_pixels: int = _setting(50_000_000, integer(1, 2**40), "pixels an image may have, by its header")
    max_frames: int = _setting(1000, integer(1, 2**40), "frames an animation may have; only its first is looked at")
    max_decode_ms: int = _setting(
        1500, integer(1, 86_400_000), "milliseconds of CPU time that decoding a picture may take"
    )
    max_files: int = _setting(32, integer(1, 10_000), "files a request may have")
    exif_orientation: bool = _setting(
        True, on_off, "turn pictures upright as their EXIF says: on or off (TIFF always turns)"
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        host_names,
        "names that the server answers to besides addresses and loopback names, separated by commas, *.example.org and "
        "* allowed; none: any, or only the latter if it listens on loopback only",
    )
    cors_origins: tuple[str, ...] = _setting(
        (), origins, "origins whose pages may use the server from a browser, separated by commas"
    )
    api_keys_file: Path | None = _setting(
        None, path_of, "file of API keys, one a line, one of which /upload and /v2 then want; reread when it changes"
    )
    server_timing: bool = _setting(False, on_off, "tell where an answer's time went, in Server-Timing: on or off")
    log_format: str = _setting("auto", one_of("auto", "text", "json"), "text, json, or auto: text on a terminal")
    log_level: str = _setting("info", one_of("debug", "info", "warning", "error"), "debug, info, warning or error")

    @property
    def thread_plan(self) -> ThreadPlan:
        """What these settings come to on the CPUs that are there now."""
        return plan_threads(self.threads, self.streams, self.intra_op_threads)


MODELS: Final = ROOT / "models"


def load_config(
    arguments: Sequence[str], environment: Mapping[str, str], parser: argparse.ArgumentParser | None = None
) -> Config:
    """Settings from all sources; raises `ConfigError` naming key and value. Arguments as for `load_settings`."""
    return load_settings(arguments, environment, parser)[0]


def load_settings(
    arguments: Sequence[str], environment: Mapping[str, str], parser: argparse.ArgumentParser | None = None
) -> tuple[Config, dict[str, str]]:
    """Settings from all sources, and by name where each came from; raises `ConfigError` naming key and value.

    parser: made by `argument_parser`, for who has added flags of its own. `--help` and an unknown flag end the process
    from within, as argparse does.
    """
    flags = vars((parser or argument_parser()).parse_args(arguments))
    path, entries = read_settings_file(
        flags["config"] or environment.get("SERVE_CONFIG") or None,
        {setting.name: setting.default for setting in fields(Config)},
    )
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in fields(Config):
        flag, variable = _names(setting.name)
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
    if config.max_files > config.max_queue:
        raise ConfigError(
            f"max_files={config.max_files} is more than max_queue={config.max_queue}: so many could never be let in"
        )
    if config.max_request_bytes > config.max_upload_bytes:
        raise ConfigError(
            f"max_request_bytes={config.max_request_bytes} is more than max_upload_bytes={config.max_upload_bytes}: "
            "a request of that size could never be let in"
        )
    return config, sources


def _names(setting: str) -> tuple[str, str]:
    return f"--{setting.replace('_', '-')}", f"SERVE_{setting.upper()}"


def argument_parser(
    prog: str = "python -m serve",
    description: str = "Classify pictures over HTTP: curl -F 'file=@cat.jpg' http://127.0.0.1:5000/upload",
    own: str = "",
) -> argparse.ArgumentParser:
    """A parser with a flag for each setting; own: what else the command takes, as it is to be shown."""
    parser = ArgumentParser(
        prog=prog,
        # Thirty flags would push the error that follows them off the screen.
        usage=f"{prog} {f'{own} ' if own else ''}[--SETTING VALUE ...]   (--help tells all)",
        description=description,
        epilog="Each flag is also an environment variable, named after it in brackets, and an entry of a TOML file; "
        "the flag wins, then the variable. `python -m serve autotune` measures which threads suit, "
        "`python -m serve health` asks whether a server is ready, "
        "`python -m serve config` tells each setting and where it came from. "
        "Ctrl-C or SIGTERM ends the server with status 0; a setting it cannot start with ends it with status 2.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"TOML file with settings [SERVE_CONFIG, default: {DEFAULT_FILE} if it is there]",
    )
    for setting in fields(Config):
        flag, variable = _names(setting.name)
        parser.add_argument(
            flag, metavar="VALUE", help=f"{setting.metadata['help']} [{variable}, default: {shown(setting.default)}]"
        )
    return parser


def shown(value: Any) -> str:
    """A setting's value as it would be written; none where it is not set."""
    match value:
        case bool():
            return "on" if value else "off"
        case Path():
            return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)
        case () | None:
            return "none"
        case tuple():
            return ",".join(value)
        case _:
            return str(value)
