"""The running image, read-only and without capabilities, tested over HTTP."""

import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image as Picture

from tests.container.conftest import TABLE
from tests.container.engine import LOCKED_DOWN, ROOT, Container, docker, running
from tests.hostile.pictures import encoded
from tests.references import pictures
from tests.server_process import running_server

RIGHT_AT_LEAST = 0.8


def upload(url: str, name: str, data: bytes) -> httpx2.Response:
    return httpx2.post(f"{url}/upload", files={"file": (name, data)}, timeout=30)


def formats() -> dict[str, bytes]:
    """Returns files in every accepted format, mode and compression: the stored images and some made here."""
    with Picture.open(ROOT / "tests" / "data" / "photos" / "cat.jpg") as file:
        cat = file.convert("RGB")
    every = {path.name: path.read_bytes() for path in pictures()}
    every["12_megapixels.jpg"] = encoded(cat.resize((4000, 3000)), format="JPEG", quality=85)
    every["optimised.jpg"] = encoded(cat, format="JPEG", quality=85, progressive=True, optimize=True)
    for compression in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "lzma", "zstd"):
        every[f"{compression}.tiff"] = encoded(cat, format="TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        every[f"{compression}.tiff"] = encoded(cat.convert("1"), format="TIFF", compression=compression)
    every["lossy.avif"] = encoded(cat, format="AVIF", quality=50, subsampling="4:2:0")
    every["lossless.webp"] = encoded(cat, format="WEBP", lossless=True)
    every["interlaced.gif"] = encoded(cat, format="GIF", interlace=True)
    return every


@pytest.fixture(scope="session")
def outside(model_file: Path) -> Iterator[str]:
    """The URL of a server with the same model in the project's environment, from which nothing was left out."""
    with running_server(sys.executable, "--model", str(model_file), "--log-format", "json") as server:
        yield server.url


def test_every_accepted_format_gets_the_answer_it_gets_outside(container: Container, outside: str) -> None:
    statuses: dict[str, Counter[int]] = {}
    for name, data in formats().items():
        inside = upload(container.url, name, data)
        statuses.setdefault(name.rsplit(".", 1)[1], Counter())[inside.status_code] += 1
        wanted = upload(outside, name, data)
        assert (inside.status_code, inside.json()) == (wanted.status_code, wanted.json()), name
    TABLE["formats, status × files"] = [
        f"{suffix:<8}{', '.join(f'{status} × {count}' for status, count in counts.items())}"
        for suffix, counts in sorted(statuses.items())
    ]
    assert set(statuses) == {"jpg", "png", "webp", "gif", "bmp", "tiff", "avif"}
    assert all(set(counts) == {200} for counts in statuses.values()), statuses


def test_bad_requests_get_their_problems(container: Container, cat: bytes) -> None:
    another = encoded(Picture.new("RGB", (9, 9)), format="PPM")
    huge = encoded(Picture.new("1", (20_000, 20_000)), format="PNG")
    heic = (ROOT / "tests" / "data" / "heic" / "rgb.heic").read_bytes()
    cases = {
        "not an image": (upload(container.url, "a.jpg", b"hello"), 415),
        "an image of another format": (upload(container.url, "a.ppm", another), 415),
        "HEIC without its extra": (upload(container.url, "a.heic", heic), 415),
        "half an image": (upload(container.url, "a.jpg", cat[: len(cat) // 2]), 422),
        "too many pixels": (upload(container.url, "a.png", huge), 413),
        "too many bytes": (upload(container.url, "a.jpg", cat + bytes(21 * 2**20)), 413),
        "no file": (httpx2.post(f"{container.url}/upload", files={"picture": (None, "text")}), 400),
        "no such route": (httpx2.get(f"{container.url}/nowhere"), 404),
        "a wrong method": (httpx2.get(f"{container.url}/upload"), 405),
        "a deadline of 1 ms": (
            httpx2.post(
                f"{container.url}/upload", content=cat,
                headers={"Content-Type": "image/jpeg", "X-Request-Timeout-Ms": "1"},
            ),
            504,
        ),
    }  # fmt: skip
    for name, (answer, status) in cases.items():
        assert answer.status_code == status, f"{name}: {answer.text}"
        assert answer.headers["content-type"] == "application/problem+json", name
        assert answer.json()["status"] == status
    assert "with --build-arg HEIC=1" in cases["HEIC without its extra"][0].json()["detail"]
    TABLE["bad requests"] = [f"{name:<28}{status}" for name, (_, status) in cases.items()]


def test_a_request_as_large_as_is_allowed_needs_no_disk(container: Container, cat: bytes) -> None:
    headers = {"Content-Type": "image/jpeg"}
    for more, status in ((0, 200), (1, 413)):
        padded = cat + bytes(20 * 2**20 - len(cat) + more)
        answer = httpx2.post(f"{container.url}/upload", content=padded, headers=headers, timeout=30)
        assert answer.status_code == status


def test_the_operators_routes_answer(container: Container) -> None:
    assert httpx2.get(container.url).text == "Server is Running\n"
    for route in ("livez", "readyz", "healthz"):
        assert httpx2.get(f"{container.url}/{route}").status_code == 200
    card = httpx2.get(f"{container.url}/model").json()
    assert (card["name"], card["variant"]) == ("densenet121", "int8")
    assert card["parity"]["max_abs_logit_difference"] <= 1e-4


def test_decoders_are_sealed_under_the_engines_seccomp_profile(container: Container) -> None:
    assert 'decoders="sealed"' in httpx2.get(f"{container.url}/metrics").text
    assert "decoders sealed;" in container.log


def test_the_container_reports_its_health(container: Container) -> None:
    asked = container.run("python", "-m", "serve", "health")
    assert (asked.returncode, asked.stdout[:6]) == (0, "ready:")
    deadline = time.monotonic() + 30
    while container.state["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline, container.state["Health"]
        time.sleep(0.2)


def test_the_container_is_locked_down(container: Container) -> None:
    status = dict(
        line.split(":\t", 1) for line in container.python("print(open('/proc/1/status').read())").splitlines()
    )
    assert status["Name"] == "python"
    for line in ("Uid", "Gid"):
        assert set(status[line].split()) == {"65532"}
    assert all(int(status[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"))
    assert status["NoNewPrivs"] == "1"
    tried = container.python(
        "import errno, os\n"
        "for folder in ('/', '/tmp', '/app', '/usr/local/lib', '/etc'):\n"
        "    try: open(os.path.join(folder, 'x'), 'w'); print(folder, 'can be written to')\n"
        "    except OSError as error: print(folder, errno.errorcode[error.errno])"
    )
    assert "can be written to" not in tried
    host = json.loads(docker("inspect", "--format", "{{json .HostConfig}}", container.id))
    assert host["ReadonlyRootfs"]
    assert not host.get("Tmpfs")
    assert not host.get("Binds")
    TABLE["security it ran with"] = [
        f"{'docker run':<28}{' '.join(LOCKED_DOWN)}",
        f"{'user, group':<28}{status['Uid'].split()[0]}, {status['Gid'].split()[0]}",
        f"{'capabilities, bounding set':<28}{status['CapEff']}, {status['CapBnd']}",
        f"{'no new privileges, seccomp':<28}{status['NoNewPrivs']}, {status.get('Seccomp', '?')}",
        f"{'read-only root':<28}{host['ReadonlyRootfs']}",
        f"{'tmpfs, volumes':<28}{host.get('Tmpfs') or 'none'}, {host.get('Binds') or 'none'}",
    ]


def test_only_modules_of_the_runtime_can_be_imported(container: Container) -> None:
    found = container.python(
        "import importlib.util as i; print([n for n in ('torch', 'torchvision', 'onnx', 'pip', 'setuptools', 'export', "
        "'numpy', 'onnxruntime') if i.find_spec(n)])"
    )
    assert found == "['numpy', 'onnxruntime']"


def test_autotune_works_in_the_container(container: Container) -> None:
    done = container.run("python", "-m", "serve", "autotune")
    assert done.returncode == 0, done.stderr
    assert "intra_op_threads = " in done.stdout


def test_help_lists_the_settings(image_name: str) -> None:
    said = docker("run", "--rm", "--network", "none", *LOCKED_DOWN, image_name, "--help")
    assert "--max-request-bytes" in said
    with pytest.raises(RuntimeError, match="--port='none'"):
        docker("run", "--rm", "--network", "none", *LOCKED_DOWN, image_name, "--port", "none")


def test_all_request_forms_work_with_settings_changed(image_name: str, cat: bytes) -> None:
    flags = (
        "--decode",
        "exact",
        "--cors-origins",
        "https://example.org",
        "--server-timing",
        "on",
        "--log-format",
        "text",
    )
    with running(image_name, *LOCKED_DOWN, arguments=flags) as container:
        raw = httpx2.post(f"{container.url}/upload", content=cat, headers={"Content-Type": "image/jpeg"})
        assert raw.json()["label"] == "Egyptian_cat"
        assert "infer" in raw.headers["server-timing"]
        several = [("file", ("a.jpg", cat)), ("file", ("b.txt", b"text")), ("file", ("c.jpg", cat))]
        results = httpx2.post(f"{container.url}/upload?top_k=2", files=several).json()["results"]
        assert [result.get("label", result.get("status")) for result in results] == [
            "Egyptian_cat",
            415,
            "Egyptian_cat",
        ]
        asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
        preflight = httpx2.request("OPTIONS", f"{container.url}/upload", headers=asked)
        assert preflight.headers["access-control-allow-origin"] == "https://example.org"
        for name, data in formats().items():
            assert upload(container.url, name, data).status_code == 200, name
        assert "POST /upload 200" in container.log


def test_threads_follow_the_cpu_quota(image_name: str, cat: bytes) -> None:
    with running(image_name, *LOCKED_DOWN, "--cpus", "1", "--memory", "256m") as small:
        assert "with 1 CPU (the cgroup's quota of 1 CPUs" in small.log
        assert upload(small.url, "cat.jpg", cat).status_code == 200
        assert upload(small.url, "large.jpg", formats()["12_megapixels.jpg"]).status_code == 200


def test_docker_stop_loses_no_accepted_request(image_name: str, cat: bytes) -> None:
    answers: Counter[int] = Counter()
    with running(image_name, *LOCKED_DOWN) as stopped, ExitStack() as connections:
        address = urlsplit(stopped.url)
        head = f"POST /upload HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: image/jpeg\r\nConnection: close\r\n"
        request = f"{head}Content-Length: {len(cat)}\r\n\r\n".encode() + cat
        sockets = []
        for _ in range(40):
            client = socket.create_connection((str(address.hostname), address.port or 80), timeout=30)
            sockets.append(connections.enter_context(client))
            client.sendall(request)
        httpx2.get(f"{stopped.url}/livez")  # the server accepts connections in order, so it has accepted the others
        began = time.perf_counter()
        docker("stop", stopped.id)
        took = time.perf_counter() - began
        for client in sockets:
            answers[int(client.makefile("rb").readline().split()[1])] += 1
        state = stopped.state
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert set(answers) <= {200, 503}  # each has an answer; 503 for those that arrived too late
    assert answers.total() == 40
    assert answers[200] >= 20
    assert took < 9, "docker stop kills after ten seconds"


def test_it_starts_fast_and_stays_small(image_name: str, cat: bytes) -> None:
    starts = []
    for _ in range(5):
        with running(image_name, *LOCKED_DOWN) as started:
            starts.append(started.seconds_to_ready)
            idle = started.megabytes
            assert upload(started.url, "cat.jpg", cat).status_code == 200
            after = started.megabytes
    median = sorted(starts)[len(starts) // 2]
    TABLE["start and memory"] = [
        f"{'docker start to ready, s':<28}{median:.2f} ({min(starts):.2f}–{max(starts):.2f})",
        f"{'RSS idle, MB':<28}{idle:.0f}",
        f"{'RSS after an answer, MB':<28}{after:.0f}",
    ]
    assert median < 3
    # Of all processes, with shared pages counted in each; the last layer's weights, kept for maps, are 4 MB of it, and
    # the engine's code in huge pages 26.
    assert after < 230


def test_photographs_get_the_right_labels(container: Container, photo_folder: Path | None) -> None:
    """PHOTOS that int8 was not calibrated on; without PHOTOS the three photographs of tests/data."""
    if photo_folder is None:
        expected = {"cat.jpg": "n02124075", "coffee.jpg": "n07920052", "rocket.jpg": "n03773504"}
        folder = ROOT / "tests" / "data" / "photos"
    else:
        record = json.loads((ROOT / "export" / "int8" / "calibration_data" / "densenet121.json").read_text())
        paths = [path for path in sorted(photo_folder.iterdir()) if path.name not in record["photographs"]]
        expected = {path.name: path.name.split("_")[0] for path in paths}
        folder = photo_folder
    right = 0
    for name, wnid in expected.items():
        answer = upload(container.url, name, (folder / name).read_bytes())
        assert answer.status_code == 200, name
        right += answer.json()["imagenet_id"] == wnid
    TABLE["accuracy"] = [
        f"{right} of {len(expected)} photographs of {folder.name} labelled correctly ({right / len(expected):.1%})"
    ]
    assert right >= RIGHT_AT_LEAST * len(expected)
