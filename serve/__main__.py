"""`python -m serve COMMAND` runs serve/commands/COMMAND.py; without a command it runs the server.

Exit status: 2, with one line on standard error, if the command cannot start. Stopped by a signal, the server exits with
0 and every other command with 128 plus the signal's number.
"""

from serve.server.signals import exit_on_signals, open_closed_streams, report_start_failure

if __name__ == "__main__":
    open_closed_streams()
    exit_on_signals()  # before the slow imports, so that a signal during the first second also exits cleanly

import importlib
import os
import sys
from typing import Final

from serve.commands.failures import failure_reason
from serve.config.environment import unknown_variables
from serve.errors import StartError
from serve.imaging.malloc import tune_malloc
from serve.printable import one_line

_COMMANDS: Final = ("classify", "autotune", "config", "health")


def main() -> int:
    """Runs the command in `sys.argv`.

    Returns:
        The exit status of the process. The server does not return: it ends the process itself.
    """
    tune_malloc()
    # OpenBLAS, in numpy, would start threads that are never used, and sends SIGINT if it cannot start one.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        if not command or command.startswith("-"):
            return _run("serve", sys.argv[1:])
        if command not in _COMMANDS:
            raise StartError(
                f"unknown command {command!r}; the commands are {', '.join(_COMMANDS)}; without one the server starts"
            )
        if command != "health":  # it runs every few seconds
            for warning in unknown_variables(os.environ):
                print(one_line(f"serve: {warning}"), file=sys.stderr)
        return _run(command, sys.argv[2:])
    except (StartError, ModuleNotFoundError) as error:
        return report_start_failure(failure_reason(error))


def _run(command: str, arguments: list[str]) -> int:
    return int(importlib.import_module(f"serve.commands.{command}").main(arguments, os.environ))


if __name__ == "__main__":
    sys.exit(main())
