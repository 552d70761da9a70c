"""A real nginx with the configuration that SECURITY.md shows, in front of a real server process."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.server_process import ROOT, ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

NAME = "pictures.example"
START_SECONDS = 20.0
# What belongs around the block of SECURITY.md in a configuration of its own.
FRAME = """
daemon off;
user root;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    ssl_certificate {folder}/certificate.pem;
    ssl_certificate_key {folder}/key.pem;
{block}
}}
"""


@dataclass(frozen=True)
class Proxied:
    """nginx on `port`, with TLS, in front of `server`."""

    port: int
    server: ServerProcess


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def shown_block() -> str:
    """The nginx configuration in SECURITY.md."""
    found = re.search(r"## Behind nginx\n.*?```nginx\n(.*?)```", (ROOT / "SECURITY.md").read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="session")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    assert nginx, "these tests need nginx: apt-get install nginx-light"
    folder = tmp_path_factory.mktemp("nginx")
    make_certificate(folder)
    keys = folder / "keys"
    keys.write_text("the-key\n")
    flags = ("--allowed-hosts", NAME, "--api-keys-file", str(keys), "--log-format", "json")
    with running_server(sys.executable, "--model", str(TINY_MODEL), *flags) as server:
        port = free_port()
        block = shown_block()
        for shown, used in (
            ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
            ("http://127.0.0.1:5000", f"http://{urlsplit(server.url).netloc}"),
        ):
            assert block.count(shown) == 1, shown
            block = block.replace(shown, used)
        (folder / "nginx.conf").write_text(FRAME.format(folder=folder, block=block))
        process = subprocess.Popen([nginx, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")])
        try:
            await_port(port, process, folder / "error.log")
            yield Proxied(port, server)
        finally:
            process.terminate()
            process.wait(10)


def make_certificate(folder: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command, *files], check=True, capture_output=True)


def await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        else:
            return
