"""The contents of the image, read layer by layer: its size, what must not be there, and what must."""

import configparser
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from container.rules import LEFT_OUT_DISTRIBUTIONS
from serve import __version__
from tests.container.conftest import SBOM, TABLE
from tests.container.engine import ROOT, Image, docker

# In bytes, with DenseNet-121 in int8.
MOST_BYTES = 145_000_000
MOST_COMPRESSED = 56_000_000
COMPONENTS = {
    "model": r"app/models/",
    "server and labels": r"app/",
    "onnxruntime": r".*/site-packages/onnxruntime",
    "numpy": r".*/site-packages/numpy",
    "Pillow": r".*/site-packages/(PIL|pillow)",
    "other packages": r".*/site-packages/",
    "standard library": r".*/lib/python3\.\d+/",
    "interpreter": r"usr/local/(bin|lib)/",
    "C and TLS libraries": r"(usr/)?lib(32|64)?/",
    "SBOM, licences, settings": r"",
}


def component_of(path: str) -> str:
    return next(name for name, pattern in COMPONENTS.items() if re.match(pattern, path))


def test_the_image_is_within_its_size(image: Image) -> None:
    sizes = dict.fromkeys(COMPONENTS, 0)
    for path, entry in image.entries.items():
        sizes[component_of(path)] += entry.size
    lines = [f"{name:<32}{size / 1e6:8.1f}" for name, size in sizes.items()]
    lines += [f"{'all, and gzipped':<32}{image.size / 1e6:8.1f}{image.compressed / 1e6:8.1f}"]
    lines += [f"{'bound':<32}{MOST_BYTES / 1e6:8.1f}{MOST_COMPRESSED / 1e6:8.1f}"]
    TABLE["size, MB"] = lines
    assert image.size <= MOST_BYTES
    assert image.compressed <= MOST_COMPRESSED
    assert all(sizes.values()), "a component's pattern matches nothing"


def test_nothing_that_belongs_to_export_or_installing_is_inside(image: Image) -> None:
    forbidden = {"torch", "torchvision", "onnx", "onnxscript", "safetensors", "nvidia", "triton"}
    forbidden |= {"pip", "setuptools", "wheel", "ensurepip", "pip3", "apt", "dpkg"}
    forbidden |= {"sh", "bash", "dash", "busybox", "ash", "env", "curl", "wget", "export"}
    found = {path for path in image.entries if Path(path).name.split("-")[0] in forbidden}
    assert not found
    assert "app/serve/api/app.py" in image.entries  # the names have the form that is searched for


def test_there_is_no_program_but_the_interpreter(image: Image) -> None:
    programs = {
        path
        for path, entry in image.entries.items()
        if entry.kind == tarfile.REGTYPE and entry.mode & 0o111 and not re.search(r"\.so(\.|$)", path)
    }
    assert [Path(path).name for path in programs] == ["python3.11"]


def test_only_root_owns_and_can_write_files(image: Image) -> None:
    for path, entry in image.entries.items():
        assert entry.owner == (0, 0), path
        assert entry.kind == tarfile.SYMTYPE or not entry.mode & 0o022, f"{path} has mode {entry.mode:o}"
        assert not entry.mode & 0o7000, f"{path} has mode {entry.mode:o}"


def test_the_user_can_read_all_files(image: Image) -> None:
    for path, entry in image.entries.items():
        needed = 0o005 if entry.kind == tarfile.DIRTYPE else 0o004
        assert entry.kind == tarfile.SYMTYPE or entry.mode & needed == needed, f"{path} has mode {entry.mode:o}"


def pip_settings(base: str) -> Iterator[str]:
    """Yields the values of pip's settings on this machine and in the base image, from files and variables."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    yield from re.findall(r"='(.*)'", listed.stdout)
    yield from (
        value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_")) or "proxy" in name.lower()
    )
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text_of(base, "/etc/pip.conf", "/etc/xdg/pip/pip.conf", "/root/.config/pip/pip.conf"))
    for section in parser.sections():
        yield from (value for _, value in parser.items(section))


def text_of(base: str, *paths: str) -> str:
    """Returns the text of those of these files that the image has."""
    code = f"import pathlib; [print(pathlib.Path(p).read_text()) for p in {paths!r} if pathlib.Path(p).exists()]"
    return docker("run", "--rm", "--network", "none", base, "python3", "-c", code)


def traces_of_this_machine(base: str) -> set[str]:
    """Returns what would reveal where the image was built: hosts and folders in pip's settings, this folder."""
    traces = {str(ROOT)}
    for value in pip_settings(base):
        for word in value.replace("file://", "").split():
            if word.startswith("/"):
                traces.add(word)
            elif host := urlsplit(word if "//" in word else f"//{word}").hostname:
                traces.add(host)
    # Not specific to a machine: Debian's settings, names without a domain, top-level folders.
    return {
        trace
        for trace in traces
        if (trace.count("/") > 1 and not trace.startswith("/etc/"))
        or (re.search(r"[a-z]", trace) and re.fullmatch(r"[\w-]+(\.[\w-]+)+", trace))
    }


def base_of(image: Image) -> str:
    labels: dict[str, str] = image.config["config"]["Labels"]
    return labels["org.opencontainers.image.base.name"]


def holding(contents: dict[str, bytes], trace: bytes) -> list[str]:
    return [path for path, content in contents.items() if trace in content]


def test_nothing_reveals_where_the_image_was_built(image: Image) -> None:
    everything = {**image.contents, "its settings and history": json.dumps(image.config).encode()}
    for trace in traces_of_this_machine(base_of(image)):
        found = holding(everything, trace.encode())
        assert not found, f"{trace} is in {found}"
    assert holding({"planted": str(ROOT).encode()}, str(ROOT).encode()) == ["planted"]


def test_there_is_no_certificate_and_no_setting_of_pip(image: Image) -> None:
    # TLS libraries have built-in roots; those of wheels are pinned by hash.
    texts = {path: content for path, content in image.contents.items() if not content.startswith(b"\x7fELF")}
    assert not holding(texts, b"-----BEGIN CERTIFICATE-----\n")
    assert not [
        path for path in image.entries if re.search(r"\.(pem|crt|cer|p12|pfx)$|pip\.conf|\.netrc|etc/ssl/", path)
    ]
    # The same search finds some in the base image.
    assert "-----BEGIN CERTIFICATE-----\n" in text_of(base_of(image), "/etc/ssl/certs/ca-certificates.crt")


def test_no_package_index_is_named(image: Image) -> None:
    """Searches all files, including the SBOM; compiled Python is not searched."""
    default = subprocess.run(
        [sys.executable, "-c", "from pip._internal.models.index import PyPI; print(PyPI.netloc)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    found = [path for path in holding(image.contents, default.encode()) if not path.endswith(".pyc")]
    assert not found


def test_the_sbom_lists_what_the_image_contains(image: Image) -> None:
    document = json.loads(image.contents[SBOM])
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    listed = {part["purl"].split("?")[0]: part.get("scope") for part in document["components"]}
    locked = (ROOT / "requirements" / "runtime.txt").read_text()
    versions = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", locked, re.MULTILINE))
    for name in ("numpy", "onnxruntime", "pillow", "starlette", "uvicorn"):
        assert listed[f"pkg:pypi/{name}@{versions[name]}"] == "required"
    present = {
        re.sub("[-_.]+", "-", match[1]).lower()
        for path in image.entries
        if (match := re.search(r"site-packages/(.+)-[^-]+\.dist-info$", path))
    }
    required = {re.split("[/@]", purl)[1] for purl, scope in listed.items() if "pypi" in purl and scope == "required"}
    excluded = {re.split("[/@]", purl)[1] for purl, scope in listed.items() if scope == "excluded"}
    assert present == required
    assert excluded == set(LEFT_OUT_DISTRIBUTIONS)
    assert any(purl.startswith("pkg:generic/cpython@3.") for purl in listed)
    assert any(re.match(r"pkg:deb/.*/libc6@", purl) for purl in listed)
    assert any(re.match(r"pkg:deb/.*/libssl3", purl) for purl in listed)


def test_every_part_has_its_licence(image: Image) -> None:
    folders = {path for path in image.entries if path.endswith(".dist-info")}
    assert len(folders) >= 10
    for folder in folders:
        texts = [path for path in image.contents if path.startswith(f"{folder}/") and re.search("LICEN[CS]E", path)]
        names_it = re.search(rb"^License(-Expression)?: .+", image.contents[f"{folder}/METADATA"], re.MULTILINE)
        assert texts or names_it, folder
    assert "usr/local/lib/python3.11/LICENSE.txt" in image.contents
    assert "app/LICENSE" in image.contents
    assert "usr/share/doc/libc6/copyright" in image.contents
    assert "usr/share/common-licenses/LGPL-2.1" in image.contents


def test_its_settings_are_those_of_a_service(image: Image) -> None:
    config = image.config["config"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert config["Entrypoint"] == ["python", "-m", "serve"]
    assert not config.get("Cmd")
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "serve", "health"]
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["ExposedPorts"]) == ["5000/tcp"]
    assert "ORT_DISABLE_TELEMETRY=1" in config["Env"]


def test_the_labels_describe_the_image(image: Image) -> None:
    labels = {
        key.removeprefix("org.opencontainers.image."): value for key, value in image.config["config"]["Labels"].items()
    }
    assert labels["title"] == "densenet-server"
    assert labels["version"] == __version__
    for part in json.loads(image.contents[SBOM])["components"]:
        for licence in part.get("licenses", []) if part["scope"] == "required" else []:
            named = licence.get("expression") or licence["license"]["id"]
            assert all(word in labels["licenses"].split() for word in re.split(" AND | OR ", named)), part["name"]
    assert labels["base.name"].startswith("python:3.11")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert labels["revision"].removesuffix("-dirty") == head.strip()


@pytest.mark.parametrize("place", ["pyproject.toml", "Dockerfile"])
def test_the_version_is_the_same_everywhere(place: str) -> None:
    text = (ROOT / place).read_text()
    assert re.findall(r'^(?:ARG VERSION|version) ?= ?"?([0-9.]+)"?$', text, re.MULTILINE) == [__version__]
