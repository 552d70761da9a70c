"""A minimal HTTP/1.1 client over one blocking socket.

Hand-written so that the load generator uses little CPU: a request is built once, and an answer is parsed only as far as
needed to find its end.
"""

import base64
import json
import re
import socket
from dataclasses import dataclass, field
from typing import Final

_BOUNDARY: Final = "----benchmark-7f1d0c5b9a"
_RECEIVE: Final = 65536
_IMAGENET_ID: Final = re.compile(rb"\bn\d{8}\b")
_STAGE: Final = re.compile(r"\s*([\w-]+)\s*;(?:[^,]*;)?\s*dur=([\d.]+)")


class BrokenAnswer(Exception):
    """The answer is not HTTP, or ended too soon."""


@dataclass(frozen=True)
class Answer:
    """An answer. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def imagenet_id(self) -> str:
        """The first ImageNet id in the body: in every server measured here, the most probable class."""
        found = _IMAGENET_ID.search(self.body)
        return found[0].decode() if found else ""

    def is_right(self, expect: str) -> bool:
        """Whether it is a success with a right id. expect: right ids, separated by commas; if empty, any is right."""
        given = self.imagenet_id
        return self.status == 200 and given != "" and (expect == "" or given in expect.split(","))

    @property
    def stages(self) -> dict[str, float]:
        """Milliseconds by stage, from `Server-Timing`; empty if the server sends none."""
        return {name: float(duration) for name, duration in _STAGE.findall(self.headers.get("server-timing", ""))}


def build_request(host: str, path: str, photo: bytes, send: str) -> bytes:
    """Build the bytes of a request.

    Args:
        send: `multipart:FIELD`, `raw:MEDIA/TYPE`, or `v2:INPUT` (Open Inference Protocol, base64).

    Raises:
        ValueError: `send` has another form.
    """
    kind, _, detail = send.partition(":")
    if kind == "multipart":
        media_type = f"multipart/form-data; boundary={_BOUNDARY}"
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{detail}"; filename="photo.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        )
        body = head.encode() + photo + f"\r\n--{_BOUNDARY}--\r\n".encode()
    elif kind == "raw":
        media_type, body = detail, photo
    elif kind == "v2":
        media_type = "application/json"
        value = {
            "name": detail,
            "shape": [1, 1],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},
            "data": [base64.b64encode(photo).decode()],
        }
        body = json.dumps({"inputs": [value]}).encode()
    else:
        raise ValueError(f"{send!r} is not multipart:FIELD, raw:MEDIA/TYPE or v2:INPUT")
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Connection:
    """A keep-alive connection; it reconnects if the server has closed it."""

    host: str
    port: int
    timeout: float
    _socket: socket.socket | None = None
    _received: bytearray = field(default_factory=bytearray)

    def exchange(self, request: bytes) -> Answer:
        """Send one request and read its answer; an error closes the connection.

        Raises:
            BrokenAnswer: The answer is not HTTP, or ended too soon.
            OSError: The connection failed.
        """
        try:
            if self._socket is None:
                self._socket = socket.create_connection((self.host, self.port), self.timeout)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(request)
            return self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next exchange opens a new one."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._received.clear()

    def _read(self) -> Answer:
        first, *lines = bytes(self._take_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise BrokenAnswer(f"the answer begins with {first[:60]!r}")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = self._take_chunks()
        elif "content-length" in headers:
            body = self._take(int(headers["content-length"]))
        else:
            body = self._take_rest()
        kept = headers.get("connection", "keep-alive" if version == "HTTP/1.1" else "close")
        if kept.lower() == "close":
            self.close()
        return Answer(int(rest[:3]), headers, body)

    def _receive(self) -> bool:
        received = self._socket.recv(_RECEIVE) if self._socket else b""
        self._received += received
        return bool(received)

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            if not self._receive():
                raise BrokenAnswer("the answer ends too soon")
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _take_until(self, mark: bytes) -> bytes:
        while (position := self._received.find(mark)) < 0:
            if not self._receive():
                raise BrokenAnswer("the answer ends too soon" if self._received else "the connection was closed")
        return self._take(position + len(mark))[: -len(mark)]

    def _take_chunks(self) -> bytes:
        body = b""
        while size := int(self._take_until(b"\r\n").split(b";")[0], 16):
            body += self._take(size)
            self._take(2)
        while self._take_until(b"\r\n"):  # trailers
            pass
        return body

    def _take_rest(self) -> bytes:
        while self._receive():
            pass
        body = bytes(self._received)
        self.close()
        return body
