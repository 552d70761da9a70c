"""`--cors-origins`: what no browser sends is refused with what to write instead; what browsers do send works."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import idna
import pytest

from serve.config.origins import parse_origin
from serve.config.settings import ROOT, load_config
from serve.errors import ConfigError
from tests.serve.conftest import ClientFor
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL

EXTENSION = "chrome-extension://abcdefghijklmnopabcdefghijklmnop"

# Entries that match no page, and what the message says to write instead.
WRITTEN_OTHERWISE = {
    # the port is the scheme's default, or not written as a number is
    "https://a.example:443": "https://a.example",
    "http://a.example:80": "http://a.example",
    "http://[::1]:80": "http://[::1]",
    "https://a.example:08443": "https://a.example:8443",
    "https://a.example:": "https://a.example",
    # the host is not ASCII
    "https://bücher.example": "https://xn--bcher-kva.example",
    "https://bu\u0308cher.example": "https://xn--bcher-kva.example",  # u and a combining diaeresis
    "https://BÜCHER.example:8443": "https://xn--bcher-kva.example:8443",
    "https://straße.example": "https://xn--strae-oqa.example",
    "http://ΟΔΟΣ.example": "http://xn--pxavbq.example",
    "https://пример.испытание": "https://xn--e1afmkfd.xn--80akhbyknj4f",
    "https://例え。テスト": "https://xn--r8jz45g.xn--zckzah",
    "https://ｅｘａｍｐｌｅ.org": "https://example.org",
    "https://exam\u00adple.org": "https://example.org",
    "https://example\u200b.org": "https://example.org",
    "https://😀.example": "https://xn--e28h.example",
    # upper case
    "https://A.Example": "https://a.example",
    "HTTPS://a.example": "https://a.example",
    "NULL": "null",
    "Capacitor://localhost": "capacitor://localhost",
    EXTENSION.upper(): EXTENSION,
    # more than an origin
    "https://a.example/": "https://a.example",
    "https://a.example/path": "https://a.example",
    "https://a.example?query": "https://a.example",
    "https://a.example#fragment": "https://a.example",
    "https://user@a.example": "https://a.example",
    "https://user:word@a.example:8443/": "https://a.example:8443",
    f"{EXTENSION}/": EXTENSION,
    "capacitor://localhost/": "capacitor://localhost",
    "blob:https://a.example/0f6d9a56": "https://a.example",
    # less than an origin
    "a.example": "https://a.example",
    "a.example/path": "https://a.example",
    "//a.example": "https://a.example",
    "a.example:8443": "http://a.example:8443",
    "localhost": "http://localhost",
    "localhost:3000": "http://localhost:3000",
    "127.0.0.1:3000": "http://127.0.0.1:3000",
    "[::1]:3000": "http://[::1]:3000",
    # misspelled
    "https:/a.example": "https://a.example",
    "https:a.example": "https://a.example",
    "https//a.example": "https://a.example",
    r"https:\\a.example": "https://a.example",
    "htps://a.example": "https://a.example",
    "chrome-extention://abc": "chrome-extension://abc",
    '"https://a.example"': "https://a.example",
    "'https://a.example'": "https://a.example",
    '["https://a.example"]': "https://a.example",
    "<https://a.example>": "https://a.example",
    # another form of an address
    "http://127.1:3000": "http://127.0.0.1:3000",
    "http://0x7f000001": "http://127.0.0.1",
    "http://192.168.001.010": "http://192.168.1.8",
    "http://127.0.0.1.": "http://127.0.0.1",
    "http://[0:0:0:0:0:0:0:1]:3000": "http://[::1]:3000",
    "http://[2001:DB8::1]": "http://[2001:db8::1]",
    "http://[::ffff:192.0.2.1]": "http://[::ffff:c000:201]",
    # another scheme than the page's
    "ws://a.example:8080": "http://a.example:8080",
    "wss://a.example": "https://a.example",
    "file:///home/me/page.html": "null",
    "file://": "null",
    "data:text/html": "null",
    # a wildcard
    "https://*.example.com": "https://www.example.com",
    "http://localhost:*": "http://localhost:3000",
    "https://*.example.com:*": "https://www.example.com:3000",
    "*://a.example": "https://a.example",
    "http*://a.example": "https://a.example",
    "*.example.com": "https://www.example.com",
    "https://*.Bücher.example/": "https://www.xn--bcher-kva.example",
    "https://*": "https://example.org",
    "https://a*.example": "https://example.org",
    r"https://.*\.example\.com": "https://example.org",
}
# Entries that cannot be meant for an origin, and what is wrong with them.
NO_ORIGIN = {
    "https://": "'' is not a host",
    "://": "no page has such a scheme, host and port",
    "ftp://a.example": "no page has such a scheme, host and port",
    "https://a.example:99999": "'99999' is not a port from 1 to 65535",
    "https://a.example:65536": "'65536' is not a port from 1 to 65535",
    "https://a.example:0": "'0' is not a port from 1 to 65535",
    "https://a.example:-1": "'-1' is not a port from 1 to 65535",
    "https://a.example:٣": "'٣' is not a port from 1 to 65535",
    "http://localhost:3000-3010": "'3000-3010' is not a port from 1 to 65535",
    "capacitor://localhost:x": "'x' is not a port from 1 to 65535",
    "https://a..example": "'a..example' is not a host",
    "https://.example.com": "'.example.com' is not a host",
    "https://a%20b": "'a%20b' is not a host",
    "https://(www|api).example.com": "'(www|api).example.com' is not a host",
    f"https://{'a' * 64}.example": f"'{'a' * 64}.example' is not a host",
    f"https://{'ü' * 64}.example": f"'{'ü' * 64}.example' is not a host",
    f"https://{'a.' * 130}example": "no page has such a scheme, host and port",
    "http://256.1.1.1": "'256.1.1.1' is not an IPv4 address",
    "http://1.2.3.4.5": "'1.2.3.4.5' is not an IPv4 address",
    "http://[::1": "'[' is not an IPv6 address",
    "http://[fe80::1%eth0]": "is not an IPv6 address",
    "http://[1.2.3.4]": "'[1.2.3.4]' is not an IPv6 address",
    "capacitor://": "'' is not a host",
    "capacitor://lokalrechner-ü": "'lokalrechner-ü' is not a host",
}
# What browsers and applications send.
SENT = [
    "https://a.example",
    "http://a.example",
    "https://a.example:8443",
    "http://a.example:443",
    "https://a.example:80",
    "https://a.example.",
    "http://localhost",
    "http://localhost:3000",
    "http://127.0.0.1:8080",
    "http://[::1]:8080",
    "http://intranet",
    "https://under_score.example",
    "https://xn--bcher-kva.example",
    "http://tauri.localhost",
    "null",
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "app://obsidian.md",
    EXTENSION,
    "moz-extension://0f6d9a56-5a1c-4a56-9a56-0f6d9a560f6d",
    "safari-web-extension://E5A0A1F5-5A1C-4A56-9A56-0F6D9A560F6D",
    "vscode-webview://0b3c5d7e9f",
]


def refusal(*arguments: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(arguments, environment)
    return str(caught.value)


@pytest.mark.parametrize(("entry", "instead"), WRITTEN_OTHERWISE.items())
def test_an_entry_that_matches_no_page_is_refused_with_what_to_write(entry: str, instead: str) -> None:
    said = refusal("--cors-origins", f"https://first.example,{entry}")
    assert "cors-origins" in said
    assert repr(entry) in said
    assert said.endswith((f"; write {instead}, as browsers send it", f"such as {instead}"))
    assert load_config(["--cors-origins", instead], {}).cors_origins == (instead,)


@pytest.mark.parametrize(("entry", "wrong"), NO_ORIGIN.items())
def test_an_entry_that_is_no_origin_is_refused_with_what_is_wrong(entry: str, wrong: str) -> None:
    said = refusal("--cors-origins", entry)
    assert f"{entry!r} is not an origin such as https://example.org: " in said
    assert wrong in said


@pytest.mark.parametrize("sources", [{"SERVE_CORS_ORIGINS": "*"}, {"SERVE_CORS_ORIGINS": "https://a.example, *"}])
def test_a_star_alone_is_told_why_not(sources: dict[str, str]) -> None:
    said = refusal(**sources)
    assert "'*' would let every page on the web use this server" in said
    assert "such as https://example.org" in said


def test_lists_are_separated_by_any_white_space() -> None:
    text = " https://a.example\thttps://b.example,\n\u00a0https://c.example "
    listed = load_config(["--cors-origins", text], {}).cors_origins
    assert listed == ("https://a.example", "https://b.example", "https://c.example")
    assert "'b.example' matches no page" in refusal("--cors-origins", "https://a. b.example")


def test_an_entry_of_the_settings_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('cors_origins = ["https://a.example", "https://b.example:443"]\n')
    said = refusal("--config", str(tmp_path / "own.toml"))
    assert said.startswith(str(tmp_path / "own.toml"))
    assert said.endswith("'https://b.example:443' matches no page; write https://b.example, as browsers send it")


def test_the_start_fails_with_one_line() -> None:
    command = [sys.executable, "-m", "serve", "--cors-origins", "https://*.bücher.example"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "serve: --cors-origins='https://*.bücher.example': 'https://*.bücher.example': * is no wildcard here; "
        "list each origin in full, such as https://www.xn--bcher-kva.example"
    ]


def test_listed_origins_work(client_for: ClientFor, cat: bytes) -> None:
    listed = load_config(["--cors-origins", ",".join(SENT)], {}).cors_origins
    assert listed == tuple(SENT)
    client = client_for(cors_origins=listed)
    for origin in SENT:
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        asked = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        preflight = client.options("/upload", headers=asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, origin)
        assert "x-api-key" in preflight.headers["access-control-allow-headers"]
        answer = client.post("/upload", files={"file": cat}, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        broken = client.post("/upload", files={"file": b"text"}, headers=headers)
        assert (broken.status_code, broken.headers["access-control-allow-origin"]) == (415, origin)
        for other in (f"{origin}.example", f"x{origin}"):
            refused = client.post("/upload", files={"file": cat}, headers={**headers, "Origin": other})
            assert (refused.status_code, refused.json()["reason"]) == (403, "foreign_origin")
            assert "access-control-allow-origin" not in refused.headers
            assert repr(other) in refused.json()["detail"]


def test_unlisted_origins_of_applications_are_refused(client_for: ClientFor, cat: bytes) -> None:
    client = client_for(cors_origins=("https://a.example",))
    for origin in ("null", "capacitor://localhost", EXTENSION):
        answer = client.post("/upload", files={"file": cat}, headers={"Origin": origin})
        assert (answer.status_code, answer.json()["reason"]) == (403, "foreign_origin")


@pytest.mark.parametrize("origin", ["ori'gin\"", "http://a.example\x85", "\x1b[31m", "ü", "<script>"])
def test_a_refused_origin_is_quoted_without_control_characters(origin: str, client_for: ClientFor, cat: bytes) -> None:
    client = client_for()
    answer = client.post("/upload", files={"file": cat}, headers={b"Origin": origin.encode()})
    assert answer.status_code == 403
    assert repr(origin.encode().decode("latin-1")) in answer.json()["detail"]
    assert answer.json()["detail"].isprintable()


def test_the_server_warns_of_null() -> None:
    flags = ("--model", str(TINY_MODEL), "--log-format", "json")
    with running_server(sys.executable, *flags, "--cors-origins", "null") as server:
        warnings = [line["message"] for line in server.log if line["level"] == "warning"]
    assert len(warnings) == 1
    assert "any web page can send" in warnings[0]
    with running_server(sys.executable, *flags, "--cors-origins", "https://a.example") as server:
        assert not [line for line in server.log if line["level"] == "warning"]


@pytest.mark.parametrize(
    "host",
    [
        *(
            "bücher",
            "straße",
            "ΣΊΣΥΦΟΣ",
            "faß",
            "i\u0307stanbul",
            "日本語",
            "mañana",
            "ÉCOLE",
            "عربي",
            "한국",
            "ǅungla",
        ),
        *("ﬁn", "Ｗｉｄｅ"),
    ],
)
def test_international_names_become_what_the_idna_package_makes_of_them(host: str) -> None:
    sent = idna.encode(f"{host}.example", uts46=True, transitional=False).decode("ascii")
    assert sent.isascii()
    assert sent in refusal("--cors-origins", f"https://{host}.example")


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "ü" * 4000, "https://" + "*" * 4000, "https://x:" + "*" * 4000 + "/", "a" * 4000 + "://x",
        "https://" + "1." * 2000, "http://[" + ":" * 4000, "https://" + "@" * 4000, "\"'" * 2000, "https:" * 600,
        "\ufdfa" * 4000, "*://" * 1000,
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_the_worst_entry_takes_milliseconds(text: str) -> None:
    began = time.thread_time()
    with contextlib.suppress(ValueError):
        parse_origin(text)
    assert time.thread_time() - began < 0.1
