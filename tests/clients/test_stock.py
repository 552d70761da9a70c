"""Stock HTTP clients and Prometheus' parser."""

import asyncio
from importlib.metadata import version

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


def test_prometheus(server: ServerProcess) -> None:
    answer = requests.get(f"{server.url}/metrics", timeout=10)
    families = list(text_string_to_metric_families(answer.text))
    assert {family.name for family in families} >= {
        "serve_requests",
        "serve_request_duration_seconds",
        "serve_rejected",
    }
    TABLE.append((f"prometheus-client {version('prometheus-client')}", f"parsed {len(families)} metrics"))
