"""Stock HTTP clients and Prometheus' parser."""

import asyncio
import io
import json
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import requests
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from tests.clients.conftest import TABLE
from tests.server_process import ServerProcess


def test_requests(server: ServerProcess, photos: dict[str, bytes]) -> None:
    with requests.Session() as session:
        one = session.post(f"{server.url}/upload", files={"file": photos["cat"]}, timeout=10)
        several = session.post(
            f"{server.url}/upload", files=[("file", (name, data)) for name, data in photos.items()], timeout=10
        )
    assert [result["filename"] for result in several.json()["results"]] == list(photos)
    assert {"x-request-id", "server-timing"} <= {name.lower() for name in one.headers}
    TABLE.append((f"requests {version('requests')}", f"/upload, one file and {len(photos)}: {one.json()['label']}"))


def test_urllib3(server: ServerProcess, photos: dict[str, bytes]) -> None:
    answer = urllib3.request("POST", f"{server.url}/upload", body=photos["cat"], headers={"Content-Type": "image/jpeg"})
    assert answer.status == 200
    TABLE.append((f"urllib3 {version('urllib3')}", f"/upload, the image as the body: {answer.json()['label']}"))


def test_aiohttp(server: ServerProcess, photos: dict[str, bytes]) -> None:
    async def ask() -> list[str]:
        async with aiohttp.ClientSession() as session:

            async def one(data: bytes) -> str:
                form = aiohttp.FormData()
                form.add_field("file", data, filename="x.jpg")
                async with session.post(f"{server.url}/upload", data=form) as answer:
                    assert answer.status == 200
                    label: str = (await answer.json())["label"]
                    return label

            return await asyncio.gather(*(one(data) for data in photos.values() for _ in range(5)))

    labels = asyncio.run(ask())
    assert len(set(labels)) == len(photos)
    TABLE.append((f"aiohttp {version('aiohttp')}", f"{len(labels)} concurrent /upload, all answered"))


NAMES = ["cat.jpg", "café 猫.jpg", 'a "cat" (1).jpg', "it's 100%; a=b.jpg", "back\\slash.jpg", "my cat.jpg"]


def test_every_client_gets_its_file_names_back(
    server: ServerProcess, photos: dict[str, bytes], run: Any, tmp_path: Path
) -> None:
    url, cat = f"{server.url}/upload", photos["cat"]
    fields = [("image", (name, cat)) for name in NAMES]
    listed = {
        "requests": requests.post(url, files=fields, timeout=30).json(),
        "urllib3": urllib3.request("POST", url, fields=fields).json(),
    }

    async def ask(quote_fields: bool) -> Any:
        form = aiohttp.FormData(quote_fields=quote_fields)
        for name in NAMES:
            form.add_field("file[]", cat, filename=name)
        async with aiohttp.ClientSession() as session, session.post(url, data=form) as answer:
            return await answer.json()

    listed |= {f"aiohttp, quote_fields={quoted}": asyncio.run(ask(quoted)) for quoted in (True, False)}
    for name in NAMES:
        (tmp_path / name).write_bytes(cat)
    for flags in ([], ["--form-escape"]):
        forms = [word for name in NAMES for word in ("-F", f'files=@"{curl_quoted(name)}"')]
        listed[" ".join(["curl", *flags])] = json.loads(run("curl", "-sS", *flags, *forms, url, cwd=tmp_path))
    # By default aiohttp escapes all of a name. An ASCII one is taken as sent, because other names have `%20` in them.
    as_sent = [quote(name, safe="").replace("%22", '"') if name.isascii() else name for name in NAMES]
    for client, answer in listed.items():
        expected = as_sent if client == "aiohttp, quote_fields=True" else NAMES
        assert [result["filename"] for result in answer["results"]] == expected, client
    TABLE.append(("requests, urllib3, aiohttp, curl", f"{len(NAMES)} file names in lists, as the client means them"))


def curl_quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def test_clients_that_send_no_usable_content_type(
    server: ServerProcess, photos: dict[str, bytes], run: Any, tmp_path: Path
) -> None:
    url, cat = f"{server.url}/upload", photos["cat"]
    (tmp_path / "cat.jpg").write_bytes(cat)

    async def ask() -> Any:
        async with aiohttp.ClientSession() as session, session.post(url, data=io.BytesIO(cat)) as answer:
            return await answer.json()

    answers = [
        requests.post(url, data=cat, timeout=30).json(),
        urllib3.request("POST", url, body=cat).json(),
        asyncio.run(ask()),
        json.loads(run("curl", "-sS", "--data-binary", "@cat.jpg", url, cwd=tmp_path)),
        json.loads(run("curl", "-sS", "-X", "POST", "-T", "cat.jpg", url, cwd=tmp_path)),
        json.load(urllib.request.urlopen(url, cat)),  # noqa: S310  the server's own address
    ]
    assert len({answer["label"] for answer in answers}) == 1
    TABLE.append(("requests, urllib3, aiohttp, curl, urllib", "the image as the body, with no Content-Type of its own"))


def test_prometheus(server: ServerProcess) -> None:
    answer = requests.get(f"{server.url}/metrics", timeout=10)
    families = list(text_string_to_metric_families(answer.text))
    assert {family.name for family in families} >= {
        "serve_requests",
        "serve_request_duration_seconds",
        "serve_rejected",
    }
    TABLE.append((f"prometheus-client {version('prometheus-client')}", f"parsed {len(families)} metrics"))
