"""The server's application as a Ray Serve deployment: replicas on many machines behind one address.

    RAY_USAGE_STATS_ENABLED=0 .venv/ray/bin/serve run deploy.ray.server:application model=densenet121 max_replicas=8

A replica corresponds to one server process, on one CPU by default (`cpus`). Ray places, scales, replaces and updates
replicas. Every machine needs this project at the same path. Settings are those of `python -m serve`, except for its
sockets, which belong to Ray.
"""

import os
from typing import Any, Final

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray import serve
from ray.serve.config import AutoscalingConfig

from serve.api.app import create_app
from serve.api.boundary import Boundary
from serve.config.cpus import cpu_budget
from serve.config.settings import load_config
from serve.imaging.malloc import tune_malloc
from serve.model.classifier import load_classifier

NAME: Final = "classifier"
# A replica's queue answers 429 when it is full; Ray holds requests back before that.
_MAX_ONGOING: Final = 32
_DEPLOYMENT_SETTINGS: Final = ("cpus", "min_replicas", "max_replicas", "target_ongoing_requests")


class Classifier:
    """A replica. settings: flags of `python -m serve`, without the dashes."""

    def __init__(self, settings: dict[str, str]) -> None:
        tune_malloc(arenas=cpu_budget(0).count + 1)
        flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        self._config = load_config(flags, {})
        self._classifier = load_classifier(self._config)

    def __serve_build_asgi_app__(self) -> Boundary:
        """The application of `python -m serve`; Ray Serve calls this once the replica exists."""
        return create_app(self._config, self._classifier)


def application(settings: dict[str, Any]) -> serve.Application:
    """A deployment, ready for `serve.run`.

    Args:
        settings: The server's settings, and `cpus` of a replica (default 1), `min_replicas` (1), `max_replicas` (4) and
            `target_ongoing_requests` (2), the number of requests in a replica that autoscaling aims at.
    """
    cpus = int(settings.get("cpus", 1))
    server_settings = {name: value for name, value in settings.items() if name not in _DEPLOYMENT_SETTINGS}
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=_MAX_ONGOING,
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
    return deployment.bind({"threads": str(cpus), "decode": "fast", "allowed_hosts": "*", **server_settings})
