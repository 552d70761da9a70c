"""Docker through its command line: reading images layer by layer, running containers, building."""

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
# The options that docs/container.md recommends.
LOCKED_DOWN = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "128")


def docker(*arguments: str, check: bool = True, seconds: float = 120) -> str:
    """Runs a docker command and returns its standard output.

    Raises:
        RuntimeError: The command failed and `check` is set; the message has its standard error.
    """
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, check=False, timeout=seconds)
    if check and done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


@dataclass(frozen=True)
class Entry:
    """One file, folder or link of an image.

    Attributes:
        kind: The type, as in `tarfile`.
        mode: The permission bits.
        owner: User and group id.
        size: The size in bytes.
        detail: The sha256 of a file, the target of a link.
    """

    kind: bytes
    mode: int
    owner: tuple[int, int]
    size: int
    detail: str


@dataclass
class Image:
    """An image as `docker save` writes it.

    Attributes:
        config: The image's configuration.
        entries: Path → file, folder or link.
        compressed: Bytes of all layers, each gzipped as in a registry.
        contents: Path → bytes of a file.
    """

    config: dict[str, Any]
    entries: dict[str, Entry] = field(default_factory=dict)
    compressed: int = 0
    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries.values())

    @classmethod
    def load(cls, name: str) -> "Image":
        """Reads all layers of an image in order, and keeps the bytes of every file in memory."""
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
                assert ".wh." not in member.name, (
                    f"{member.name} deletes a file of an earlier layer, which still takes space"
                )
                content = b""
                if member.isreg():
                    file = archive.extractfile(member)
                    assert file is not None
                    content = file.read()
                    assert member.name not in self.contents, f"{member.name} is in two layers and takes space twice"
                    self.contents[member.name] = content
                detail = hashlib.sha256(content).hexdigest() if member.isreg() else member.linkname
                self.entries[member.name.rstrip("/")] = Entry(
                    member.type, member.mode, (member.uid, member.gid), len(content), detail
                )


class Container:
    """A container.

    Attributes:
        id: Its id.
        url: The server's address, once started.
        seconds_to_ready: Time from `docker start` until the server was ready.
    """

    def __init__(self, image: str, options: Sequence[str], arguments: Sequence[str]) -> None:
        if docker("network", "ls", "--filter", "driver=bridge", "--quiet"):
            network = ["--publish", "127.0.0.1::5000"]
            self.url = ""
        else:  # an engine without a bridge network
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            network = ["--network", "host", "--env", f"SERVE_PORT={port}", "--env", "SERVE_HOST=127.0.0.1"]
            self.url = f"http://127.0.0.1:{port}"
        self.id = docker("create", *network, *options, image, *arguments)
        self.seconds_to_ready = 0.0

    def start(self) -> None:
        """Starts the container and waits until the server is ready."""
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
        """Resident memory of its processes, according to `docker top`."""
        processes = docker("top", self.id, "-o", "pid,rss").splitlines()[1:]
        return sum(int(line.split()[1]) for line in processes) * 1024 / 1e6

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container, beside the server."""
        return subprocess.run(
            [DOCKER, "exec", self.id, *command], capture_output=True, text=True, check=False, timeout=120
        )

    def python(self, code: str) -> str:
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@contextmanager
def running(image: str, *options: str, arguments: Sequence[str] = ()) -> Iterator[Container]:
    """Runs a container within a `with` block, and removes it afterwards in any case."""
    container = Container(image, options, arguments)
    try:
        container.start()
        yield container
    finally:
        docker("rm", "--force", container.id)


@dataclass(frozen=True)
class Build:
    """A finished build: its log and the time it took."""

    log: str
    seconds: float

    def steps(self, stage: str) -> dict[str, bool]:
        """Returns the steps of a stage, and whether each was executed rather than taken from the cache."""
        numbers = dict(re.findall(rf"^#(\d+) (\[{re.escape(stage)} .*)", self.log, re.MULTILINE))
        cached = set(re.findall(r"^#(\d+) CACHED", self.log, re.MULTILINE))
        return {step: number not in cached for number, step in numbers.items()}


def build(tree: Path, image: str, *options: str, **variables: str) -> Build:
    """Runs `make image` in a copy of the project.

    Args:
        tree: The copy.
        image: Name of the image to build.
        options: Further options of `docker build`.
        variables: Variables of make.
    """
    started = time.perf_counter()
    inherited = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MFLAGS"}}
    if inherited.get("WEIGHTS"):  # the copy already has the file
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
