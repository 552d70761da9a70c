"""`python -m serve`: settings → address → model → serve until SIGINT, SIGTERM, SIGHUP or SIGQUIT.

`python -m serve classify` classifies files without HTTP, `autotune` measures, `health` asks whether a server is ready
and `config` tells each setting and where it came from. Leaves with status 0 after any of the signals (the commands with
128 and the signal's number), and with 2 and one line on standard error where it cannot start, whatever the reason.
"""

from serve.server.signals import exit_now, exit_on_signals, open_closed_streams, report_start_failure

if __name__ == "__main__":
    open_closed_streams()
    exit_on_signals()  # before the other imports, so that a signal in the first second is no error either

import gc
import importlib
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from serve.config.settings import Config, load_config
from serve.config.strays import strays
from serve.errors import StartError
from serve.model.files import AUTO, EMBEDDED
from serve.observability.error_stream import install_error_stream
from serve.observability.log import log_uncaught_errors, set_up_logging
from serve.observability.shared_metrics import use_unshared_metrics
from serve.printable import one_line
from serve.scheduling.malloc import trim_malloc, tune_malloc
from serve.server.connections import MAX_EXCESS_CONNECTIONS
from serve.server.sockets import listen
from serve.server.supervisor import RunWorker, Supervisor, cpu_share

# What a Python that is not the project's own lacks first.
_PACKAGES = {"numpy", "PIL", "onnxruntime", "starlette", "uvicorn", "httptools", "prometheus_client"}
# Each a module, loaded only where it is asked for.
_COMMANDS = ("classify", "autotune", "config", "health")
# Libraries, the model, the listener and what the event loop needs.
_OTHER_FILES = 64

log = logging.getLogger("serve")


def main() -> int:
    """Run the command; the process's exit status. A server ends the process by itself."""
    tune_malloc()
    # numpy's, which has nothing to do here; where no thread is left it would send this process a SIGINT.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if not command or command.startswith("-"):
        install_error_stream()
        exit_now(status_of(start))
    try:
        return run_command(command, sys.argv[2:])
    except (StartError, ModuleNotFoundError) as error:
        return report_start_failure(reason(error))


def start() -> int:
    """Serve to the end, in this process or in several; the exit status."""
    config = load_config(sys.argv[1:], os.environ)
    set_up_logging(config.log_format, config.log_level)
    log_uncaught_errors()
    for stray in strays(os.environ):
        log.warning("%s", stray)
    allow_connections(config.max_connections)
    # The address first: a taken port is the commonest mistake, and the model need not be loaded to find it.
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in listen(config)]
        if config.workers > 1:
            return Supervisor(listeners, worker_of(config), config.grace_seconds).run()
        use_unshared_metrics()
        return serve(config, listeners[0])


def status_of(work: Callable[[], int]) -> int:
    """Its exit status; whatever keeps it from starting is said in one line."""
    try:
        return work()
    except Exception as error:
        log.debug("what kept it from starting", exc_info=True)
        return report_start_failure(reason(error))


def reason(error: Exception) -> str:
    """Why something did not start."""
    if isinstance(error, StartError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
        return f"this Python has no {error.name}; 'make serve' makes .venv/runtime/bin/python, which has all it takes"
    return f"the start failed: {f'{type(error).__name__}: {error}'.removesuffix(': ')}"


def run_command(name: str, arguments: list[str]) -> int:
    """One of the commands beside serving; its exit status. Raises `StartError`."""
    if name not in _COMMANDS:
        raise StartError(f"there is no command {name!r}; there are {', '.join(_COMMANDS)}, and none starts the server")
    if name != "health":  # which is asked every few seconds
        for stray in strays(os.environ):
            print(one_line(f"serve: {stray}"), file=sys.stderr)
    module = importlib.import_module(f"serve.commands.{name}")
    status: int = module.main(arguments, os.environ)
    return status


def allow_connections(count: int) -> None:
    """Have the system allow so many sockets besides the files that are open anyway; raises `StartError`."""
    needed = count + MAX_EXCESS_CONNECTIONS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise StartError(
                f"max_connections={count} needs {needed} open files, and the system allows {hard} (ulimit -n)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def worker_of(config: Config) -> RunWorker:
    """What one of several workers does: serve with its share of the CPUs; its exit status."""
    budget = config.thread_plan.budget
    log.info("%d workers share %d CPUs (%s)", config.workers, budget.count, budget.reason)

    def work(number: int, listener: socket.socket, heartbeat: Callable[[], None]) -> int:
        own = replace(config, threads=cpu_share(budget.count, config.workers, number))
        return status_of(lambda: serve(own, listener, heartbeat))

    return work


def serve(config: Config, listener: socket.socket, heartbeat: Callable[[], None] = lambda: None) -> int:
    """Load the model, say so, then answer requests until a signal; the exit status. Raises whatever stops the start.

    heartbeat: called each second once requests are answered.
    """
    from serve.api.app import create_app, metrics_of
    from serve.model.classifier import load_classifier
    from serve.scheduling.lifecycle import Lifecycle
    from serve.server.http_server import http_server

    classifier = load_classifier(config)
    lifecycle = Lifecycle(config.grace_seconds)
    metrics = metrics_of(classifier)
    metrics.track_dropped_lines(lambda: getattr(sys.stderr, "dropped", 0))
    server = http_server(create_app(config, classifier, lifecycle, metrics), config, lifecycle, metrics, heartbeat)
    trim_malloc()
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
    try:
        server.run(sockets=[listener])
    except Exception:
        if not server.started:
            raise
        log.exception("the server failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
