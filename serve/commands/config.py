"""`python -m serve config`: what a server started with these flags, this environment and this file would use.

Standard library only. Prints a line for each setting: its value, and where that came from.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from serve.config.settings import argument_parser, load_settings, shown
from serve.printable import printable


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Print the settings; always 0. Raises `ConfigError`."""
    parser = argument_parser("python -m serve config", "Print the settings in effect, and where each came from.")
    config, sources = load_settings(arguments, environment, parser)
    rows = [
        (setting.name, printable(_shown(getattr(config, setting.name))), sources.get(setting.name, "default"))
        for setting in fields(config)
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    try:
        for name, value, source in rows:
            print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {printable(source)}")
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _shown(value: Any) -> str:
    """As it could be written in a flag, from whichever folder."""
    return str(value) if isinstance(value, Path) else shown(value)
