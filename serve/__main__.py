"""`python -m serve`: settings → address → model → serve until SIGINT or SIGTERM.

`python -m serve classify` classifies files without HTTP, `autotune` measures, `health` asks whether a server is ready
and `config` tells each setting and where it came from. Leaves with status 0 after either signal (`classify` with 130 or
143), and with 2 and one line on standard error where it cannot start.
"""

from serve.leaving import leave_on_signals

if __name__ == "__main__":
    leave_on_signals()  # before the other imports, so that a signal in the first second is no error either

import gc
import importlib
import logging
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from serve.catalogue import AUTO, EMBEDDED
from serve.command_line import one_line
from serve.config import Config, load_config
from serve.connections import ACCEPTED_TOO_MANY
from serve.errors import StartError
from serve.listeners import listen
from serve.log import set_up_logging
from serve.memory import settle_allocator, trim
from serve.strays import strays
from serve.workers import Work, Workers, count_alone, counting_together, share

_START_FAILED = 2
# What a Python that is not the project's own lacks first.
_PACKAGES = {"numpy", "PIL", "onnxruntime", "starlette", "uvicorn", "httptools", "prometheus_client"}
# Name → module, loaded only where it is asked for.
_COMMANDS = {"classify": "classify", "autotune": "autotune", "config": "show_config", "health": "health"}
# Libraries, the model, the listener and what the event loop needs.
_OTHER_FILES = 64

log = logging.getLogger("serve")


def main() -> int:
    """Run the command; the process's exit status."""
    settle_allocator()
    try:
        command = sys.argv[1] if len(sys.argv) > 1 else ""
        if command and not command.startswith("-"):
            return run_command(command, sys.argv[2:])
        config = load_config(sys.argv[1:], os.environ)
        set_up_logging(config.log_format, config.log_level)
        for stray in strays(os.environ):
            log.warning("%s", stray)
        allow_connections(config.max_connections)
        # The address first: a taken port is the commonest mistake, and the model need not be loaded to find it.
        with ExitStack() as stack:
            listeners = [stack.enter_context(listener) for listener in listen(config)]
            if config.workers == 1:
                count_alone()
                serve(config, listeners[0])
                leave_threads_behind()
                return 0
            stack.enter_context(counting_together())
            return Workers(listeners, worker_of(config), config.grace_seconds).run()
    except StartError as error:
        return failed(error)
    except ModuleNotFoundError as error:
        if error.name in _PACKAGES:
            return failed(
                f"this Python has no {error.name}; 'make serve' makes .venv/runtime/bin/python, which has all it takes"
            )
        raise


def failed(why: object) -> int:
    """One line on standard error; the exit status."""
    print(one_line(f"serve: {why}"), file=sys.stderr)
    return _START_FAILED


def run_command(name: str, arguments: list[str]) -> int:
    """One of the commands beside serving; its exit status. Raises `StartError`."""
    if name not in _COMMANDS:
        raise StartError(f"there is no command {name!r}; there are {', '.join(_COMMANDS)}, and none starts the server")
    if name != "health":  # which is asked every few seconds
        for stray in strays(os.environ):
            print(one_line(f"serve: {stray}"), file=sys.stderr)
    module = importlib.import_module(f"serve.{_COMMANDS[name]}")
    status: int = module.main(arguments, os.environ)
    return status


def allow_connections(count: int) -> None:
    """Have the system allow so many sockets besides the files that are open anyway; raises `StartError`."""
    needed = count + ACCEPTED_TOO_MANY + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise StartError(
                f"max_connections={count} needs {needed} open files, and the system allows {hard} (ulimit -n)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def leave_threads_behind() -> None:
    """End the process with 0 where a thread still works on what nobody waits for any more, a decoder that ran away.

    Python's own ending would wait for some of them, and free what others are at.
    """
    if threading.active_count() > 1:
        sys.stderr.flush()
        os._exit(0)


def worker_of(config: Config) -> Work:
    """What one of several workers does: serve with its share of the CPUs; its exit status."""
    budget = config.thread_plan.budget
    log.info("%d workers share %d CPUs (%s)", config.workers, budget.count, budget.reason)

    def work(number: int, listener: socket.socket, ready: Callable[[], None]) -> int:
        try:
            serve(replace(config, threads=share(budget.count, config.workers, number)), listener, ready)
        except StartError as error:
            return failed(error)
        return 0

    return work


def serve(config: Config, listener: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Load the model, say so, then answer requests until a signal; raises `StartError`."""
    from serve.app import create_app, metrics_of
    from serve.classifier import load_classifier
    from serve.http_server import run
    from serve.lifecycle import Lifecycle

    classifier = load_classifier(config)
    lifecycle = Lifecycle(config.grace_seconds)
    metrics = metrics_of(classifier)
    app = create_app(config, classifier, lifecycle, metrics)
    trim()
    gc.freeze()  # what is loaded by now stays, so no collection need look at it again
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if config.model == AUTO and classifier.model.name == EMBEDDED:
        log.warning(
            "DenseNet-121 is not exported; serving the small embedded model %s. To export: make serve WEIGHTS=PATH",
            EMBEDDED,
        )
    plan = config.thread_plan
    log.info(
        "%s (%s) is ready on %s with %d CPU%s (%s; streams %d, intra-op threads %d); "
        "try: curl -F 'file=@picture.jpg' %s/upload",
        classifier.model.name,
        classifier.card["variant"],
        url,
        plan.budget.count,
        "s" * (plan.budget.count > 1),
        plan.budget.reason,
        plan.streams,
        plan.intra_op_threads,
        url,
        extra={"fields": {"url": url}},
    )
    ready()
    run(app, config, lifecycle, metrics, listener)


if __name__ == "__main__":
    sys.exit(main())
