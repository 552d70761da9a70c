"""A server that gives the answers a test prescribes, in a thread or in a process of its own.

As a process: `python scripted_server.py PORT`; it starts a child process, as servers with workers do.
"""

import http.server
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RIGHT = b'{"imagenet_id": "n00000001", "label": "tench"}'
WRONG = b'{"imagenet_id": "n00000002", "label": "goldfish"}'

# Number of the request, from 0 → status, headers, body.
Script = Callable[[int], tuple[int, dict[str, str], bytes]]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, script: Script, protocol: str) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"protocol_version": protocol})
        super().__init__(("127.0.0.1", port), handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            number = len(server.requests)
            server.requests.append(body)
        status, headers, answer = server.script(number)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if headers.get("Transfer-Encoding") == "chunked":
            self.end_headers()
            half = len(answer) // 2
            for chunk in (answer[:half], answer[half:], b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            return
        if self.protocol_version == "HTTP/1.1":
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(script: Script, protocol: str = "HTTP/1.1") -> Iterator[tuple[str, list[bytes]]]:
    """Run the server for the length of a `with` block; gives its URL and the list of received bodies."""
    with _Server(0, script, protocol) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/upload", server.requests
        server.shutdown()


def always(body: bytes, status: int = 200, /, **headers: str) -> Script:
    return lambda number: (status, headers, body)


if __name__ == "__main__":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    _Server(int(sys.argv[1]), always(RIGHT), "HTTP/1.1").serve_forever(0.01)
