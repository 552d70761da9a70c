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
from tests.field.origins import EXTENSION, NO_ORIGIN, SENT, WRITTEN_OTHERWISE
from tests.serve.conftest import ClientFor
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL


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


@pytest.mark.parametrize("entry", ["all", "any", "ALL", "Any"])
def test_a_word_for_all_origins_is_told_the_same(entry: str) -> None:
    assert f"{entry!r} would let every page on the web use this server" in refusal("--cors-origins", entry)


@pytest.mark.parametrize("scheme", ["chrome-extension", "moz-extension", "safari-web-extension", "vscode-webview"])
def test_a_star_for_the_id_of_an_extension_is_told_so(scheme: str) -> None:
    for entry in (f"{scheme}://*", f"{scheme.upper()}://*/"):
        assert refusal("--cors-origins", entry).endswith(f"list each origin in full, such as {scheme}://ID")


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
