"""Loads a Ray cluster of two nodes on this machine while a replica and a node are killed and the model is updated.

    make scale-test

Prints the number of requests answered, retried and lost in each phase, and the throughput compared with one process on
as many CPUs. Exits with 1 if an answer was wrong, a request was lost, or the update caused a failed attempt.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import ray
from ray import serve
from ray.cluster_utils import Cluster

from deploy.ray.server import application
from serve.config.settings import Config
from serve.model.classifier import load_classifier
from serve.model.files import EMBEDDED_MODEL
from tests.scale.load import Account, Answers, Load
from tests.server_process import ROOT, running_server

RUNTIME = ROOT / ".venv" / "runtime" / "bin" / "python"
PORT = 8123
NODES = 2
SECONDS = 8.0
WAIT_SECONDS = 90.0
FIRST = os.environ.get("MODEL") or "auto"


def main() -> int:
    """Runs the phases and returns the process's exit status."""
    photos = {path.name: path.read_bytes() for path in sorted((ROOT / "tests/data/photos").glob("*.jpg"))}
    answers, first = expected(photos)
    if first == EMBEDDED_MODEL:
        print("make scale-test updates one model to another: export DenseNet-121 first (make export)", file=sys.stderr)
        return 2
    one_process = throughput_of_one_process(photos, answers)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second_node = cluster.add_node(num_cpus=1)
        environment = {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
        ray.init(address=cluster.address, runtime_env={"env_vars": environment}, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        deploy(first)
        phases: dict[str, Account] = {}
        with Load(f"http://127.0.0.1:{PORT}", photos, answers) as load:

            def phase(name: str, act: Callable[[], object]) -> None:
                load.phase()
                act()
                time.sleep(SECONDS)
                phases[name] = load.phase()

            wait_for_replicas(NODES)
            phases["one replica becomes two"] = load.phase()
            phase("two replicas", lambda: None)
            phase("a replica is killed", kill_a_replica)
            phase("a node is killed", lambda: cluster.remove_node(second_node, allow_graceful=False))
            phase("a node is added", lambda: (cluster.add_node(num_cpus=1), wait_for_replicas(NODES)))
            phase("rolling update", lambda: deploy(EMBEDDED_MODEL))
            phase("after the update", lambda: None)
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
    return report(phases, one_process, first)


def expected(photos: dict[str, bytes]) -> tuple[Answers, str]:
    """Returns the right answers of the first model and of its replacement, and the name of the first."""
    answers: dict[str, dict[str, tuple[str, float]]] = {}
    for model in (EMBEDDED_MODEL, FIRST):
        classifier = load_classifier(Config(model=model))
        name = classifier.model.name
        answers[name] = {}
        for photo, data in photos.items():
            best = classifier.classify(data, 1).scored[0]
            answers[name][photo] = (best.label.imagenet_id or "", best.probability)
    return answers, name


def deploy(model: str) -> None:
    """Deploys a model in place of the one before, without a pause."""
    settings = {"model": model, "min_replicas": 1, "max_replicas": NODES}
    serve.run(application(settings), name="classifier", route_prefix="/")


def throughput_of_one_process(photos: dict[str, bytes], answers: Answers) -> float:
    """Measures the images a second of one server with as many CPUs as all nodes of the cluster."""
    flags = ("--model", FIRST, "--threads", str(NODES), "--log-format", "json")
    with running_server(RUNTIME, *flags) as server, Load(server.url, photos, answers) as load:
        time.sleep(1)
        load.phase()
        time.sleep(SECONDS)
        account = load.phase()
    return account.answered / account.seconds


def replicas() -> list[str]:
    """Returns the names of the replicas' actors in Ray Serve's namespace."""
    named: list[dict[str, Any]] = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in named if each["namespace"] == "serve" and each["name"].startswith("SERVE_REPLICA")]


def wait_for_replicas(count: int) -> None:
    """Waits until Ray Serve reports that `count` replicas run."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        deployment = next(iter(serve.status().applications["classifier"].deployments.values()))
        if deployment.replica_states.get("RUNNING", 0) >= count:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"fewer than {count} replicas after {WAIT_SECONDS:.0f} s: {deployment}")
        time.sleep(0.2)


def kill_a_replica() -> None:
    """Kills a replica while it works on requests, as running out of memory would."""
    ray.kill(ray.get_actor(replicas()[0], namespace="serve"), no_restart=True)


def report(phases: dict[str, Account], one_process: float, first: str) -> int:
    """Prints the table and returns the exit status."""
    print(f"\n{'':<26}{'answered':>9}{'a second':>10}{'retried':>9}{'wrong':>7}{'lost':>6}  by")
    for name, account in phases.items():
        models = ", ".join(f"{model} {count}" for model, count in account.models.items())
        failures = f"; failed: {dict(account.failures)}" if account.failures else ""
        rate = account.answered / account.seconds
        counts = f"{account.retried:>9}{account.wrong:>7}{account.lost:>6}"
        print(f"{name:<26}{account.answered:>9}{rate:>10.1f}{counts}  {models}{failures}")
    two = phases["two replicas"]
    print(
        f"two replicas {two.answered / two.seconds:.1f} images a second, one process with {NODES} CPUs "
        f"{one_process:.1f}: {two.answered / two.seconds / one_process:.2f} of it"
    )
    faults = [
        *(f"{name}: {account.wrong} wrong" for name, account in phases.items() if account.wrong),
        *(f"{name}: {account.lost} lost" for name, account in phases.items() if account.lost),
        *(f"{name}: nothing was answered" for name, account in phases.items() if not account.answered),
    ]
    updating = {name: phases[name].retried for name in ("rolling update", "after the update")}
    faults.extend(f"{name}: {retried} attempts failed" for name, retried in updating.items() if retried)
    if set(phases["after the update"].models) != {EMBEDDED_MODEL} or set(phases["two replicas"].models) != {first}:
        faults.append("the model that answered is not the one that was deployed")
    print("\n".join(faults) or "requests: none wrong, none lost")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
