"""`python -m serve config`: prints each setting and its source, as the server would read them with these flags."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Final

from serve.config.parsers import format_value
from serve.config.settings import Config, argument_parser, load_settings
from serve.errors import StartError
from serve.imaging.preprocess import Preprocessing
from serve.model.decoders import make_decoders, start_fork_server
from serve.printable import printable

_ANY_PREPROCESSING: Final = Preprocessing(1, "nearest", 1, (0, 0, 0), (1, 1, 1))


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
        (setting.name, printable(format_value(getattr(config, setting.name))), sources.get(setting.name, "default"))
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
    """Returns what a server with these settings says of its decoders: sealed, isolated or off, or why it fails."""
    with ExitStack() as stack:
        try:
            fork_server = start_fork_server(config)
            if fork_server:
                stack.callback(fork_server.close)
            return make_decoders(config, _ANY_PREPROCESSING, fork_server).state
        except StartError as error:
            return str(error)
