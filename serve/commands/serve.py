"""`python -m serve`: reads the settings, listens, loads the model and serves until SIGINT, SIGTERM, SIGHUP or SIGQUIT.

Joins the HTTP application (`serve.api`) and the server that runs it (`serve.server`).
"""

import gc
import logging
import resource
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from serve.commands.failures import failure_reason
from serve.config.environment import unknown_variables
from serve.config.settings import Config, load_config
from serve.errors import StartError
from serve.imaging.decoders import OFF
from serve.imaging.malloc import trim_malloc
from serve.model.files import fallback_warning
from serve.observability.error_stream import install_error_stream
from serve.observability.log import log_uncaught_errors, set_up_logging
from serve.observability.shared_metrics import MetricsMemory
from serve.server.connections import MAX_EXCESS_CONNECTIONS
from serve.server.signals import exit_now, reap_orphans, report_start_failure
from serve.server.sockets import listen, passed_socket
from serve.server.supervisor import RunWorker, Supervisor, cpu_share

# Libraries, the model, the listening socket and the event loop's own files.
_OTHER_FILES: Final = 64
# Three for each of a stream's decoders: in use, kept, fresh, and two of images that stepped aside.
_DECODER_FILES: Final = 15

log = logging.getLogger("serve")


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Serves until a signal, then ends the process without waiting for its threads."""
    install_error_stream()
    exit_now(_exit_status(lambda: start(arguments, environment)))


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Serves in this process or, with several workers, in child processes.

    Returns:
        The exit status.

    Raises:
        StartError: the settings, the address or the model are unusable.
    """
    config = load_config(arguments, environment)
    set_up_logging(config.log_format, config.log_level)
    log_uncaught_errors()
    for warning in unknown_variables(environment):
        log.warning("%s", warning)
    raise_file_limit(config.max_connections, config.thread_plan.streams)
    if passed := passed_socket(environment):
        host, port = passed.getsockname()[:2]
        config = replace(config, host=host, port=port)
    # Listen before loading the model, so that the commonest mistake, a port in use, is reported at once.
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in listen(config, passed)]
        if config.workers > 1:
            memory = MetricsMemory(config.workers)
            return Supervisor(listeners, worker(config, memory), config.grace_seconds, memory).run()
        reap_orphans()
        return serve(config, listeners[0])


def raise_file_limit(connections: int, streams: int = 1) -> None:
    """Raises the limit on open files so that this many connections fit, and the decoders of this many streams.

    Raises:
        StartError: the system's hard limit is lower.
    """
    needed = connections + MAX_EXCESS_CONNECTIONS + _OTHER_FILES + _DECODER_FILES * streams
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise StartError(
                f"max_connections={connections} needs {needed} open files; lower it, or raise ulimit -Hn above {hard}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def worker(config: Config, memory: MetricsMemory) -> RunWorker:
    """Returns the function that each worker process runs: it serves with its share of the CPUs."""
    budget = config.thread_plan.budget
    log.info("%d workers share %d CPUs (%s)", config.workers, budget.count, budget.reason)

    def work(number: int, listener: socket.socket, heartbeat: Callable[[], None]) -> int:
        own = replace(config, threads=cpu_share(budget.count, config.workers, number))
        return _exit_status(lambda: serve(own, listener, heartbeat, memory, number))

    return work


def serve(
    config: Config,
    listener: socket.socket,
    heartbeat: Callable[[], None] = lambda: None,
    memory: MetricsMemory | None = None,
    number: int = 0,
) -> int:
    """Loads the model, logs that the server is ready and answers requests until a signal.

    Args:
        listener: a bound TCP socket.
        heartbeat: called every second while requests are answered.
        memory: of the metrics of all workers, if this process is worker `number` of several.
        number: from 0.

    Returns:
        The exit status.

    Raises:
        Exception: whatever stops the start.
    """
    from serve.api.app import create_app, create_metrics
    from serve.model.classifier import load_classifier
    from serve.scheduling.lifecycle import Lifecycle
    from serve.server.http_server import http_server

    classifier = load_classifier(config)
    lifecycle = Lifecycle(config.grace_seconds)
    metrics = create_metrics(classifier, memory, number)
    metrics.dropped_lines = lambda: getattr(sys.stderr, "dropped", 0)
    server = http_server(create_app(config, classifier, lifecycle, metrics), config, lifecycle, metrics, heartbeat)
    trim_malloc()
    gc.freeze()  # objects loaded by now live as long as the process, so no collection has to visit them again
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if warning := fallback_warning(config.model, classifier.model.name):
        log.warning("%s", warning)
    plan = config.thread_plan
    if classifier.decoders.state == OFF:
        log.warning("sandbox=off: images are decoded in the process that has the model and the keys; debugging only")
    if "null" in config.cors_origins:
        log.warning("cors_origins lists null, which any web page can send from a sandboxed frame: keys are advisable")
    log.info(
        "%s (%s) is ready on %s with %d CPU%s (%s; streams %d, intra-op threads %d), engine %s (%s), decoders %s; "
        "try: curl -F 'file=@cat.jpg' %s/upload",
        classifier.model.name,
        classifier.model.card["variant"],
        url,
        plan.budget.count,
        "s" * (plan.budget.count > 1),
        plan.budget.reason,
        plan.streams,
        plan.intra_op_threads,
        classifier.model.card["engine"],
        classifier.model.card["engine_reason"],
        classifier.decoders.state,
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
    finally:
        classifier.close()
    return 0


def _exit_status(run: Callable[[], int]) -> int:
    """Returns the exit status of `run()`, which for an error is that of a failed start, reported in one line."""
    try:
        return run()
    except Exception as error:
        log.debug("the start failed", exc_info=True)
        return report_start_failure(failure_reason(error))
