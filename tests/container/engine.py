"""Docker, as its command line gives it: images read layer by layer, containers run as an operator would, builds."""

import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parents[2]
DOCKER = os.environ.get("DOCKER") or "docker"
READY_SECONDS = 30.0
# As docs/container.md tells to run it.
LOCKED_DOWN = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "128")


def docker(*arguments: str, check: bool = True, seconds: float = 120) -> str:
    """What a command prints on standard output; raises `RuntimeError` with standard error where it fails."""
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, check=False, timeout=seconds)
    if check and done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


@dataclass(frozen=True)
class Entry:
    """One file, folder or link of an image. kind: `tarfile`'s type; detail: a file's sha256, a link's target."""

    kind: bytes
    mode: int
    owner: tuple[int, int]
    size: int
    detail: str


@dataclass
class Image:
    """An image as `docker save` writes it. compressed: bytes of all layers, each gzipped as a registry stores it."""

    config: dict[str, Any]
    entries: dict[str, Entry] = field(default_factory=dict)
    compressed: int = 0
    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries.values())

    @classmethod
    def load(cls, name: str) -> "Image":
        """Read all layers of an image, later ones over earlier ones; every file's bytes are kept in memory."""
        saved = subprocess.run([DOCKER, "save", name], capture_output=True, check=True, timeout=300).stdout
        with tarfile.open(fileobj=io.BytesIO(saved)) as archive:

            def read(member: str) -> bytes:
                file = archive.extractfile(member)
                assert file is not None
                return file.read()

            manifest = json.loads(read("manifest.json"))[0]
            image = cls(json.loads(read(manifest["Config"])))
            for layer in manifest["Layers"]:
                image._add(read(layer))
        return image

    def _add(self, layer: bytes) -> None:
        self.compressed += len(gzip.compress(layer, 6))
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            for member in archive:
                assert ".wh." not in member.name, f"{member.name} removes what another layer brings, which still weighs"
                content = b""
                if member.isreg():
                    file = archive.extractfile(member)
                    assert file is not None
                    content = file.read()
                    assert member.name not in self.contents, f"{member.name} is in two layers, and weighs twice"
                    self.contents[member.name] = content
                detail = hashlib.sha256(content).hexdigest() if member.isreg() else member.linkname
                self.entries[member.name.rstrip("/")] = Entry(
                    member.type, member.mode, (member.uid, member.gid), len(content), detail
                )


class Container:
    """A container: once started, `url` where it answers and `seconds_to_ready` from `docker start` on."""

    def __init__(self, image: str, options: Sequence[str], arguments: Sequence[str]) -> None:
        if docker("network", "ls", "--filter", "driver=bridge", "--quiet"):
            network = ["--publish", "127.0.0.1::5000"]
            self.url = ""
        else:  # an engine without a bridge
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            network = ["--network", "host", "--env", f"SERVE_PORT={port}", "--env", "SERVE_HOST=127.0.0.1"]
            self.url = f"http://127.0.0.1:{port}"
        self.id = docker("create", *network, *options, image, *arguments)
        self.seconds_to_ready = 0.0

    def start(self) -> None:
        """Start it and wait until it is ready."""
        started = time.perf_counter()
        docker("start", self.id)
        self.url = self.url or f"http://{docker('port', self.id, '5000').splitlines()[0]}"
        self._wait_until_ready()
        self.seconds_to_ready = time.perf_counter() - started

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                if httpx2.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                if self.state["Status"] == "exited":
                    break
            time.sleep(0.005)
        raise RuntimeError(f"the container is not ready: {self.log}")

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", self.id))
        return state

    @property
    def log(self) -> str:
        done = subprocess.run([DOCKER, "logs", self.id], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout + done.stderr

    @property
    def megabytes(self) -> float:
        """Resident memory of its processes, as the engine's `ps` says."""
        processes = docker("top", self.id, "-o", "pid,rss").splitlines()[1:]
        return sum(int(line.split()[1]) for line in processes) * 1024 / 1e6

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the container, beside the server."""
        return subprocess.run(
            [DOCKER, "exec", self.id, *command], capture_output=True, text=True, check=False, timeout=120
        )

    def python(self, code: str) -> str:
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@contextmanager
def running(image: str, *options: str, arguments: Sequence[str] = ()) -> Iterator[Container]:
    """A container for the length of a `with` block; it is removed after it, whatever became of it."""
    container = Container(image, options, arguments)
    try:
        container.start()
        yield container
    finally:
        docker("rm", "--force", container.id)


@dataclass(frozen=True)
class Build:
    """A finished build: its log and how long it took."""

    log: str
    seconds: float

    def steps(self, stage: str) -> dict[str, bool]:
        """The steps of a stage in this build, and whether each was done rather than found in the cache."""
        numbers = dict(re.findall(rf"^#(\d+) (\[{re.escape(stage)} .*)", self.log, re.MULTILINE))
        cached = set(re.findall(r"^#(\d+) CACHED", self.log, re.MULTILINE))
        return {step: number not in cached for number, step in numbers.items()}


def build(tree: Path, image: str, *options: str, **variables: str) -> Build:
    """`make image` in a copy of the project; options: more for `docker build`."""
    started = time.perf_counter()
    inherited = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MFLAGS"}}
    if inherited.get("WEIGHTS"):  # it is in the copy already
        variables = {"WEIGHTS": f"models/weights/{Path(inherited['WEIGHTS']).name}", **variables}
    variables |= {
        "IMAGE": image,
        "DOCKER": DOCKER,
        "BUILD_FLAGS": " ".join([os.environ.get("BUILD_FLAGS", ""), *options]),
    }
    done = subprocess.run(
        ["make", "image", *(f"{name}={value}" for name, value in variables.items())],
        cwd=tree,
        env=inherited,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return Build(done.stdout, time.perf_counter() - started)
