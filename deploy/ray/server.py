"""The server's own application as a Ray Serve deployment: replicas on many machines behind one address.

    RAY_USAGE_STATS_ENABLED=0 .venv/ray/bin/serve run deploy.ray.server:application model=densenet121 max_replicas=8

A replica is what one server process is, on one CPU unless `cpus` says otherwise; Ray places, counts, replaces and
updates them. Every machine needs this project in the same place. Settings are those of `python -m serve`, without
those of its sockets, which are Ray's.
"""

import os
from typing import Any, Final

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported, whoever imports it
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray import serve
from ray.serve.config import AutoscalingConfig
from starlette.applications import Starlette

from serve.api.app import create_app
from serve.config.settings import load_config
from serve.model.classifier import load_classifier
from serve.scheduling.malloc import tune_malloc

NAME: Final = "classifier"
# A replica's own queue answers 429 when it is full; Ray's holds back what would make it so.
_MOST_AT_ONCE: Final = 32
_OWN: Final = ("cpus", "min_replicas", "max_replicas", "target_ongoing_requests")


class Classifier:
    """One replica. settings: as flags of `python -m serve`, without the dashes."""

    def __init__(self, settings: dict[str, str]) -> None:
        tune_malloc()
        flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        self._config = load_config(flags, {})
        self._classifier = load_classifier(self._config)

    def __serve_build_asgi_app__(self) -> Starlette:
        """What Ray Serve asks for once the replica is made: the application that `python -m serve` runs, too."""
        return create_app(self._config, self._classifier)


def application(settings: dict[str, Any]) -> serve.Application:
    """A deployment with these settings, ready for `serve.run`.

    Besides the server's own there are `cpus` of a replica (1), `min_replicas` (1), `max_replicas` (4) and
    `target_ongoing_requests` (2), the queue length that the number of replicas follows.
    """
    cpus = int(settings.get("cpus", 1))
    own = {name: value for name, value in settings.items() if name not in _OWN}
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=_MOST_AT_ONCE,
        autoscaling_config=AutoscalingConfig(
            min_replicas=int(settings.get("min_replicas", 1)),
            max_replicas=int(settings.get("max_replicas", 4)),
            target_ongoing_requests=float(settings.get("target_ongoing_requests", 2)),
            upscale_delay_s=5,
            downscale_delay_s=60,
        ),
        health_check_period_s=2,
        graceful_shutdown_timeout_s=20,
    )(serve.ingress()(Classifier))
    return deployment.bind({"threads": str(cpus), "decode": "fast", "allowed_hosts": "*", **own})
