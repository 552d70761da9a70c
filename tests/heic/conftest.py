"""The environment of these tests, .venv/heic, has the extra `heic`; the fixtures are those of the server's tests."""

from tests.serve.conftest import cat, classifier, client, client_for, config, unignored_signals
from tests.serve.test_decoders import fork_server, pool, pool_with, slow_at_once

__all__ = [
    "cat",
    "classifier",
    "client",
    "client_for",
    "config",
    "fork_server",
    "pool",
    "pool_with",
    "slow_at_once",
    "unignored_signals",
]
