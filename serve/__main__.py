"""`python -m serve COMMAND` runs serve/commands/COMMAND.py; without a command it runs the server, as `serve` does.

Installed from the wheel, the command is `densenet-server`, which runs this module.

Exit status: 2, with one line on standard error, if the command cannot start. Stopped by a signal, the server exits with
0 and every other command with 128 plus the signal's number.
"""

import sys

from serve.imaging.malloc import restart_with_huge_pages, tune_malloc
from serve.server.signals import exit_on_signals, open_closed_streams, report_start_failure

if __name__ == "__main__":
    if sys.argv[1:2] not in (["health"], ["config"]):  # which run no model
        restart_with_huge_pages()
    open_closed_streams()
    exit_on_signals()  # before the slow imports, so that a signal during the first second also exits cleanly

import importlib
import os
from typing import Final

from serve.commands.failures import failure_reason
from serve.config.cpus import cpu_budget
from serve.config.environment import unknown_variables
from serve.errors import StartError
from serve.printable import one_line

_COMMANDS: Final = ("serve", "classify", "autotune", "config", "health")


def main() -> int:
    """Runs the command in `sys.argv`.

    Returns:
        The exit status of the process. The server does not return: it ends the process itself.
    """
    tune_malloc(arenas=cpu_budget(0).count + 1)
    # OpenBLAS, in numpy, would start threads that are never used, and sends SIGINT if it cannot start one.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = sys.argv[1:]
    command = "serve" if not arguments or arguments[0].startswith("-") else arguments.pop(0)
    try:
        if command not in _COMMANDS:
            raise StartError(
                f"unknown command {command!r}; the commands are {', '.join(_COMMANDS)}; without one the server starts"
            )
        if command not in ("serve", "health"):  # the server logs them itself; health runs every few seconds
            for warning in unknown_variables(os.environ):
                print(one_line(f"serve: {warning}"), file=sys.stderr)
        return int(importlib.import_module(f"serve.commands.{command}").main(arguments, os.environ))
    except (StartError, ModuleNotFoundError) as error:
        return report_start_failure(failure_reason(error))


if __name__ == "__main__":
    sys.exit(main())
