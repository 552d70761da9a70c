"""Tests which API keys are accepted, and what happens when their file changes."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve.api.api_keys import KeyFile
from serve.config.regular_file import read_text
from serve.errors import ConfigError, Unauthorized
from tests.serve.conftest import ClientFor
from tests.server_process import wait_for


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# of the shop\nfirst-key\n\n  second-key  # of the phone\n")
    return path


@pytest.fixture
def client(client_for: ClientFor, file: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr("serve.api.app._KEY_SECONDS", 0.01)
    return client_for(api_keys_file=file)


def replace(path: Path, content: bytes) -> None:
    """Puts `content` in place of the file at once, as the server may read the file at any moment."""
    new = path.with_name("new")
    new.write_bytes(content)
    new.replace(path)


def upload(client: TestClient, cat: bytes, **headers: str) -> Any:
    return client.post("/upload", files={"file": ("cat.jpg", cat)}, headers=headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer second-key"},
        {"X-API-Key": "second-key"},
    ],
)
def test_a_key_in_the_file_is_accepted(client: TestClient, cat: bytes, headers: dict[str, str]) -> None:
    assert upload(client, cat, **headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "An API key is needed: Authorization: Bearer KEY"),
        ({"Authorization": "Basic Zmlyc3Qta2V5"}, "An API key is needed"),
        ({"Authorization": "Bearer "}, "not one of those"),
        ({"Authorization": "Bearer first-ke"}, "not one of those"),
        ({"X-API-Key": "# of the shop"}, "not one of those"),
        ({"X-API-Key": "first-key second-key"}, "not one of those"),
    ],
)
def test_any_other_key_gets_a_401_that_says_what_is_needed(
    client: TestClient, cat: bytes, headers: dict[str, str], words: str
) -> None:
    answer = upload(client, cat, **headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    assert words in answer.json()["detail"]
    assert "first-key" not in answer.text


def test_two_thousand_wrong_keys_are_all_refused(file: Path) -> None:
    """Some of these keys share the first bytes of their digest with a valid key."""
    keys = KeyFile(file)
    for number in range(2000):
        with pytest.raises(Unauthorized):
            keys.require(b"wrong-%d" % number)


def test_a_comment_begins_at_the_start_of_a_line_or_after_white_space(file: Path) -> None:
    file.write_text("abc#def\n #none\n#none either\nghi\t# of the phone\n#\n")
    keys = KeyFile(file)
    keys.require(b"abc#def")
    keys.require(b"ghi")
    for no_key in (b"abc", b"none", b"#none", b"#none either", b"#", b""):
        with pytest.raises(Unauthorized):
            keys.require(no_key)


@pytest.mark.parametrize("header", [(b"Authorization", b"Bearer "), (b"X-API-Key", b"")])
def test_a_key_may_have_any_letters_and_is_sent_as_utf_8(
    client: TestClient, file: Path, cat: bytes, header: tuple[bytes, bytes]
) -> None:
    replace(file, "clé-日本\n".encode())
    name, before = header

    def status(key: bytes) -> int:
        return client.post(
            "/upload", content=cat, headers={b"content-type": b"image/jpeg", name: before + key}
        ).status_code

    wait_for(lambda: status("clé-日本".encode()) == 200)
    assert status("clé-日".encode()) == 401
    assert status(b"\xff\xfe") == 401


def test_probes_and_the_card_stay_open_and_other_methods_of_a_guarded_route_do_not(client: TestClient) -> None:
    for path in ("/", "/livez", "/readyz", "/model", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200
    for path in ("/v2", "/upload", "/v2/models/tiny", "/v2/models/tiny/infer", "/v2/models/tiny/versions/1/ready"):
        assert client.get(path).status_code == 401
    for path in ("/uploads", "/upload/", "/v2/healthy"):  # where there is nothing to guard
        assert client.get(path).status_code == 404


def test_a_changed_file_is_used_within_a_moment(
    client: TestClient, file: Path, cat: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serve")
    replace(file, b"third-key\n")
    wait_for(lambda: upload(client, cat, **{"X-API-Key": "first-key"}).status_code == 401)
    assert upload(client, cat, **{"X-API-Key": "third-key"}).status_code == 200
    said = [record.getMessage() for record in caplog.records if record.name == "serve"]
    assert said == [f"API keys: 1 reloaded from {file.name}"]


def test_a_change_with_the_same_size_and_time_is_noticed(file: Path) -> None:
    keys = KeyFile(file)
    before = file.stat()
    file.write_text(file.read_text().replace("first-key", "other-key"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    keys.refresh()
    keys.require(b"other-key")
    with pytest.raises(Unauthorized):
        keys.require(b"first-key")


def test_an_unreadable_file_keeps_the_previous_keys(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = KeyFile(file)
    for broken in (b"", b"\xff\xfe"):
        file.write_bytes(broken)
        for _ in range(3):
            keys.refresh()
            keys.require(b"first-key")
    file.unlink()
    for _ in range(2):
        keys.refresh()
        keys.require(b"second-key")
    assert [record.getMessage().split(": ")[1].split(";")[0] for record in caplog.records] == [
        "it contains no key",
        "not UTF-8",
        "No such file or directory",
    ]
    with pytest.raises(Unauthorized):
        keys.require(b"third-key")


def test_a_byte_order_mark_is_not_part_of_the_first_key(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbffirst-key\r\nsecond-key\r\n")
    keys = KeyFile(file)
    keys.require(b"first-key")
    keys.require(b"second-key")
    file.write_bytes(b"\xef\xbb\xbfthird-key\n")
    keys.refresh()
    keys.require(b"third-key")


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def put_too_many(path: Path) -> None:
    replace(path, b"first-key\n" * 200_000)


@pytest.mark.parametrize(
    ("put", "why"),
    [(put_pipe, "not a regular file"), (put_zeros, "not a regular file"), (put_too_many, "more than 1048576 bytes")],
)
def test_a_pipe_or_device_in_place_of_the_file_is_not_read(
    client: TestClient, file: Path, cat: bytes, caplog: pytest.LogCaptureFixture, put: Any, why: str
) -> None:
    assert upload(client, cat, **{"X-API-Key": "first-key"}).status_code == 200
    put(file)
    caplog.clear()
    wait_for(lambda: caplog.records)
    answers: list[int] = []

    def ask() -> None:
        answers.extend(
            upload(client, cat, **{"X-API-Key": key}).status_code for key in ("first-key", "third-key", "second-key")
        )

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(30)
    assert answers == [200, 401, 200]
    told = [record.getMessage() for record in caplog.records if record.name == "serve"]
    assert told == [f"API keys file {file}: {why}; the previous keys stay in use"]
    replace(file, b"third-key\n")
    wait_for(lambda: upload(client, cat, **{"X-API-Key": "third-key"}).status_code == 200)
    assert upload(client, cat, **{"X-API-Key": "first-key"}).status_code == 401


def test_a_keyless_file_is_read_once_and_each_change_is_logged_once(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KeyFile(file)
    read: list[object] = []
    monkeypatch.setattr("serve.api.api_keys.read_text", lambda *given: read.append(given) or read_text(*given))
    file.write_text("# none\n" * 100_000)
    for _ in range(100):
        keys.refresh()
    assert len(read) == 1
    for _ in range(2):
        file.rename(file.with_name("away"))
        keys.refresh()
        file.with_name("away").rename(file)
        keys.refresh()
        keys.require(b"first-key")
    told = [record.getMessage().split(": ")[1].split(";")[0] for record in caplog.records]
    assert told == ["it contains no key", *["No such file or directory", "it contains no key"] * 2]


@pytest.mark.parametrize("line", ["key " + " " * 500_000 + "x", "key" + " #" * 250_000, "#" * 500_000, "\t" * 500_000])
def test_comments_are_parsed_in_linear_time(file: Path, line: str) -> None:
    file.write_text(f"first-key\n{line}\n")
    started = time.monotonic()
    KeyFile(file).require(b"first-key")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"# none\n", "it contains no key"), (b"\xff", "not UTF-8")]
)
def test_an_unusable_key_file_stops_the_start(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        KeyFile(path)
