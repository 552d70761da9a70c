"""`python -m serve`: settings → address → model → serve until SIGINT or SIGTERM.

Leaves with status 0 after either signal, and with 2 and one line on standard error where it cannot start.
"""

import logging
import os
import signal
import socket
import sys
from types import FrameType

from serve.catalogue import AUTO, EMBEDDED
from serve.config import Config, load_config
from serve.errors import StartError
from serve.log import set_up_logging

_START_FAILED = 2
# How long requests in flight may take to finish once the server was told to stop.
_GRACE_SECONDS = 30

log = logging.getLogger("serve")


def main() -> int:
    """Run the command; the process's exit status."""
    # Before the heavy imports, so that a signal in the first second is a normal end too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        config = load_config(sys.argv[1:], os.environ)
        set_up_logging(config.log_format, config.log_level)
        # The address first: a taken port is the commonest mistake, and the model need not be loaded to find it.
        with bind(config) as listener:
            serve(config, listener)
    except StartError as error:
        print(f"serve: {error}", file=sys.stderr)
        return _START_FAILED
    return 0


def bind(config: Config) -> socket.socket:
    """A TCP socket that listens on the configured address; raises `StartError`.

    Who connects while the model is still loading waits for the fraction of a second that takes.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, UnicodeError) as error:  # the latter from names that no host can have
        reason = error.strerror if isinstance(error, OSError) else "no valid host name"
        raise StartError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose others with --host and --port"
        ) from error
    return listener


def serve(config: Config, listener: socket.socket) -> None:
    """Load the model, then answer requests until a signal; raises `StartError`."""
    import uvicorn

    from serve.app import create_app
    from serve.classifier import load_classifier

    classifier = load_classifier(config)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if config.model == AUTO and classifier.model.name == EMBEDDED:
        log.warning(
            "DenseNet-121 is not exported; serving the small embedded model %s. To export: make serve WEIGHTS=PATH",
            EMBEDDED,
        )
    log.info(
        "%s (%s) is ready on %s, %d intra-op threads; try: curl -F 'file=@picture.jpg' %s/upload",
        classifier.model.name,
        classifier.card["variant"],
        url,
        config.threads,
        url,
        extra={"fields": {"url": url}},
    )
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(config, classifier),
            log_config=None,
            access_log=False,  # middleware.py writes it, with the request id
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server.run(sockets=[listener])


def _leave(number: int, frame: FrameType | None) -> None:
    """uvicorn raises the signal that stopped it once more when all is done; for us that is a normal end."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
