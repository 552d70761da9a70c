"""`python -m serve config`: prints each setting and its source, as the server would read them with these flags."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from serve.config.settings import Config, argument_parser, format_value, load_settings
from serve.errors import StartError
from serve.imaging.crops import OFF
from serve.imaging.fork_server import ForkServer
from serve.imaging.limits import ImageLimits
from serve.imaging.messages import Rules
from serve.imaging.pool import DecoderPool, PoolOptions
from serve.imaging.preprocess import Preprocessing
from serve.printable import printable


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Prints a line for each setting, name, value and source, and one for the decoders on this system.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: a setting is not allowed.
    """
    parser = argument_parser("config", "Print each setting in effect and its source.", "")
    config, sources = load_settings(arguments, environment, parser)
    rows = [
        (setting.name, printable(_format(getattr(config, setting.name))), sources.get(setting.name, "default"))
        for setting in fields(config)
    ]
    rows.append(("decoders", _decoder_state(config), "this system"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    try:
        for name, value, source in rows:
            print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {printable(source)}")
        sys.stdout.flush()
    except BrokenPipeError:  # as with `| head`; no one reads the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _decoder_state(config: Config) -> str:
    """Returns what a server with these settings says of its decoders: sealed, isolated or off."""
    if config.sandbox == OFF:
        return OFF
    fork_server = ForkServer()
    try:
        rules = Rules(Preprocessing(1, "nearest", 1, (0, 0, 0), (1, 1, 1)), ImageLimits(1))
        return DecoderPool(fork_server, PoolOptions(rules, max_bytes=1)).state
    except StartError as error:
        return str(error)
    finally:
        fork_server.close()


def _format(value: Any) -> str:
    """Formats a value as for a flag; paths stay absolute, so that they hold in every folder."""
    return str(value) if isinstance(value, Path) else format_value(value)
