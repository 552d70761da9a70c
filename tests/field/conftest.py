from tests.serve.conftest import cat, classifier, client, client_for, coffee, config, unignored_signals

__all__ = ["cat", "classifier", "client", "client_for", "coffee", "config", "unignored_signals"]
