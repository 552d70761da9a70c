"""The peers: where each is installed, how its server is started, and with how many workers and threads.

Two configurations each, because no peer has both in one: `a`, one worker with all threads, for the shortest answer to
one client; `b`, as many workers as CPUs with one thread each, for the most images a second. For large pictures each
also with `Image.draft`, one line more, by which Pillow decodes a JPEG at a reduced scale, as our server does.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.harness.machine import ROOT, usable_cpus
from benchmarks.harness.servers import Contender

SERVERS: Final = Path(__file__).resolve().parents[1] / "peer_servers"
DRAFT: Final = ", draft"  # what the names of those end with that decode with Image.draft
_TIMEOUT_MS: Final = "60000"  # of one request; what waits behind 15 large pictures is slow, not wrong


@dataclass(frozen=True)
class Peer:
    """name: of the package, and of the files that belong to it. parts: other packages whose versions matter."""

    name: str
    build: Callable[["Peer", int, int, dict[str, str]], Contender]
    parts: tuple[str, ...]

    @property
    def python(self) -> Path:
        return environment_of(self.name)

    @property
    def lock(self) -> Path:
        return ROOT / f"requirements/peers/{self.name}.txt"

    def contenders(self, variant: str, draft: bool = False) -> list[Contender]:
        """Both configurations with one model file, named such as `mosec b, int8`.

        draft: decode at a reduced scale; they are sent large pictures only, which alone that makes a difference to.
        """
        model = ROOT / f"models/densenet121{'.int8' if variant == 'int8' else ''}.onnx"
        cpus = usable_cpus()
        found = []
        for letter, workers, threads in (("a", 1, cpus), ("b", cpus, 1)):
            environment = {
                "PEER_MODEL": str(model),
                "PEER_THREADS": str(threads),
                "PEER_WORKERS": str(workers),
                "PEER_PORT": "{port}",
                "PEER_DRAFT": str(int(draft)),
            }
            contender = self.build(self, workers, threads, environment)
            words = f"{workers} worker{'s' * (workers > 1)} with {threads} thread{'s' * (threads > 1)} each"
            settings = f"{words}; {contender.settings}" if contender.settings else words
            name = f"{self.name} {letter}, {variant}"
            if draft:
                name, settings = f"{name}{DRAFT}", f"{settings}; decodes with Image.draft"
            found.append(replace(contender, name=name, settings=settings, photos=("large",) if draft else ()))
        return found


def environment_of(name: str) -> Path:
    """The Python of a peer's own virtual environment."""
    return ROOT / ".venv/peers" / name / "bin/python"


def _litserve(peer: Peer, workers: int, threads: int, environment: dict[str, str]) -> Contender:
    command = (str(peer.python), str(SERVERS / "litserve_server.py"))
    return Contender("", command, "/predict", "multipart:request", environment, settings="default transport")


def _bentoml(peer: Peer, workers: int, threads: int, environment: dict[str, str]) -> Contender:
    command = (str(peer.python.with_name("bentoml")), "serve", "bentoml_server:DenseNet", "--host", "127.0.0.1")
    home = {"BENTOML_HOME": str(ROOT / "build/benchmarks/bentoml")}
    return Contender(
        "", (*command, "--port", "{port}"), "/classify", "multipart:image", environment | home, folder=SERVERS
    )


def _mlserver(peer: Peer, workers: int, threads: int, environment: dict[str, str]) -> Contender:
    command = (str(peer.python.with_name("mlserver")), "start", ".")
    # With one worker, none in parallel: the model then runs in the server's own process.
    parallel = 0 if workers == 1 else workers
    own = {
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_HTTP_PORT": "{port}",
        "MLSERVER_GRPC_PORT": "{port2}",
        "MLSERVER_METRICS_PORT": "{port3}",
        "MLSERVER_PARALLEL_WORKERS": str(parallel),
        "MLSERVER_DEBUG": "false",
        "MLSERVER_METRICS_DIR": str(ROOT / "build/benchmarks"),
        "MLSERVER_ENVIRONMENTS_DIR": str(ROOT / "build/benchmarks"),
    }
    settings = f"parallel_workers={parallel}, debug off"
    folder = SERVERS / "mlserver"
    return Contender("", command, "/v2/models/densenet121/infer", "v2:image", environment | own, folder, settings)


def _mosec(peer: Peer, workers: int, threads: int, environment: dict[str, str]) -> Contender:
    command = (str(peer.python), str(SERVERS / "mosec_server.py"), "--address", "127.0.0.1", "--port", "{port}")
    settings = "one stage, so that no array passes between processes"
    return Contender(
        "", (*command, "--timeout", _TIMEOUT_MS), "/inference", "raw:image/jpeg", environment, settings=settings
    )


PEERS: Final = (
    Peer("litserve", _litserve, ("litserve", "fastapi", "uvicorn")),
    Peer("bentoml", _bentoml, ("bentoml", "starlette", "uvicorn")),
    Peer("mlserver", _mlserver, ("mlserver", "fastapi", "uvicorn", "uvloop")),
    Peer("mosec", _mosec, ("mosec",)),
)
