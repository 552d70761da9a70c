"""The peers: where each is installed, how its server is started, and with how many workers and threads.

Each has two configurations, because no peer has both in one: `a`, one worker with all threads, for the lowest latency
with one client; `b`, one worker with one thread for each CPU, for the highest throughput. For large images each is also
measured with `Image.draft`, which makes Pillow decode a JPEG at a reduced scale, as our server does.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.harness.machine import ROOT, usable_cpus
from benchmarks.harness.servers import ServerSpec

SERVERS: Final = Path(__file__).resolve().parents[1] / "peer_servers"
# Our int8 file with another input (`float_input.py`), made anew by each run of `peers.py`.
FLOAT_INPUT: Final = ROOT / "build/benchmarks/densenet121.int8.float-input.onnx"
DRAFT: Final = ", draft"  # the end of a server's name if it decodes with Image.draft
_TIMEOUT_MS: Final = "60000"  # of one request, which may have to wait behind 15 large images


@dataclass(frozen=True)
class Peer:
    """A peer.

    Attributes:
        name: Of its package and of its files here.
        build: Makes its server from the peer, workers, threads and environment variables.
        parts: Packages whose versions are recorded.
    """

    name: str
    build: Callable[["Peer", int, int, dict[str, str]], ServerSpec]
    parts: tuple[str, ...]

    @property
    def python(self) -> Path:
        return environment_of(self.name)

    @property
    def lock(self) -> Path:
        return ROOT / f"requirements/peers/{self.name}.txt"

    def specs(self, variant: str, draft: bool = False) -> list[ServerSpec]:
        """Both configurations with one model file; their names are such as `mosec b, int8`.

        Args:
            variant: `int8` or `fp32`.
            draft: Decode at a reduced scale. Only large images are sent then: for others it makes no difference.
        """
        model = FLOAT_INPUT if variant == "int8" else ROOT / "models/densenet121.onnx"
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
            spec = self.build(self, workers, threads, environment)
            words = f"{workers} worker{'s' * (workers > 1)} with {threads} thread{'s' * (threads > 1)} each"
            settings = f"{words}; {spec.settings}" if spec.settings else words
            name = f"{self.name} {letter}, {variant}"
            if draft:
                name, settings = f"{name}{DRAFT}", f"{settings}; decodes with Image.draft"
            found.append(replace(spec, name=name, settings=settings, photos=("large",) if draft else ()))
        return found


def environment_of(name: str) -> Path:
    """The Python of a peer's virtual environment."""
    return ROOT / ".venv/peers" / name / "bin/python"


def _litserve(peer: Peer, workers: int, threads: int, environment: dict[str, str]) -> ServerSpec:
    command = (str(peer.python), str(SERVERS / "litserve_server.py"))
    return ServerSpec("", command, "/predict", "multipart:request", environment, settings="default transport")


def _bentoml(peer: Peer, workers: int, threads: int, environment: dict[str, str]) -> ServerSpec:
    command = (str(peer.python), "-m", "bentoml", "serve", "bentoml_server:DenseNet", "--host", "127.0.0.1")
    home = {"BENTOML_HOME": str(ROOT / "build/benchmarks/bentoml")}
    return ServerSpec(
        "", (*command, "--port", "{port}"), "/classify", "multipart:image", environment | home, folder=SERVERS
    )


def _mlserver(peer: Peer, workers: int, threads: int, environment: dict[str, str]) -> ServerSpec:
    command = (str(peer.python), "-c", "from mlserver.cli import main; main()", "start", ".")
    # 0: the model runs in the server's own process.
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
    return ServerSpec("", command, "/v2/models/densenet121/infer", "v2:image", environment | own, folder, settings)


def _mosec(peer: Peer, workers: int, threads: int, environment: dict[str, str]) -> ServerSpec:
    command = (str(peer.python), str(SERVERS / "mosec_server.py"), "--address", "127.0.0.1", "--port", "{port}")
    settings = "one stage, so that no array passes between processes"
    return ServerSpec(
        "", (*command, "--timeout", _TIMEOUT_MS), "/inference", "raw:image/jpeg", environment, settings=settings
    )


PEERS: Final = (
    Peer("litserve", _litserve, ("litserve", "fastapi", "uvicorn")),
    Peer("bentoml", _bentoml, ("bentoml", "starlette", "uvicorn")),
    Peer("mlserver", _mlserver, ("mlserver", "fastapi", "uvicorn", "uvloop")),
    Peer("mosec", _mosec, ("mosec",)),
)
