"""What the wheel and the source distribution are made of."""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from packaging.metadata import Metadata
from packaging.version import Version

from serve import __version__
from tests.project_copy import copy_project
from tests.server_process import ROOT

NAME = "densenet_server"
INFO = f"{NAME}-{__version__}.dist-info"
DATA = ("models/efficientnet_lite0.onnx", "models/efficientnet_lite0.json", "imagenet_class_index.json")
# Among the files of serve/ that are not Python.
PAGES = {"api/page.html", "api/openapi/docs_page.html", "api/openapi/openapi.json", "files/page.html"}


def tracked(folder: str) -> set[str]:
    """Returns the project's own files below a folder, by paths from the root."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_the_server_its_model_and_its_pages_and_nothing_else(wheel: Path) -> None:
    packed = tracked("serve") | tracked("deploy/ray") | set(DATA)
    files = contents(wheel)
    assert {name for name in files if not name.startswith(INFO)} == {
        f"{NAME}/__init__.py", *(f"{NAME}/{name}" for name in packed)
    }  # fmt: skip
    assert all(files[f"{NAME}/{name}"] == (ROOT / name).read_bytes() for name in packed)
    assert {name.removeprefix("serve/") for name in packed if name.startswith("serve/") and name[-3:] != ".py"} == PAGES
    assert {name.removeprefix(f"{INFO}/") for name in files if name.startswith(INFO)} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"
    }  # fmt: skip


def test_its_only_top_level_package_has_the_projects_name(wheel: Path) -> None:
    assert {name.split("/")[0] for name in contents(wheel)} == {NAME, INFO}


def test_the_metadata_names_what_pip_needs(wheel: Path) -> None:
    files = contents(wheel)
    stated = Metadata.from_email(files[f"{INFO}/METADATA"], validate=True)
    assert (stated.name, stated.version) == ("densenet-server", Version(__version__))
    assert (str(stated.requires_python), stated.license_expression) == (">=3.11", "Apache-2.0")
    assert stated.provides_extra == ["heic", "openvino", "ray"]
    needed = {each.name: str(each.marker) for each in stated.requires_dist or ()}
    runtime = {name for name, marker in needed.items() if "extra" not in marker}
    assert runtime == {
        "httptools", "numpy", "onnxruntime", "pillow", "prometheus-client", "starlette", "uvicorn"
    }  # fmt: skip
    assert set(needed) - runtime == {"pi-heif", "onnxruntime-ep-openvino", "ray"}
    for condition in ("sys_platform == 'linux'", "platform_machine == 'x86_64'"):
        assert condition.replace("'", '"') in needed["onnxruntime-ep-openvino"]
    assert files[f"{INFO}/entry_points.txt"].decode().split("\n")[:2] == [
        "[console_scripts]", "densenet-server = densenet_server:main"
    ]  # fmt: skip
    assert HeaderParser().parsestr(files[f"{INFO}/WHEEL"].decode())["Tag"] == "py3-none-any"


def test_the_source_distribution_has_what_the_wheel_is_built_from(sdist: Path) -> None:
    packed = tracked("serve") | tracked("deploy/ray") | tracked(NAME) | set(DATA)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    about = {"CHANGELOG.md", "LICENSE", "README.md", "PKG-INFO", "pyproject.toml", ".gitignore"}
    assert names == packed | about


def test_a_wheel_built_from_a_checkout_in_use_is_the_same(wheel: Path, tmp_path: Path) -> None:
    """`pip install .` builds it there, beside compiled modules, exported models and settings."""
    checkout = copy_project(tmp_path / "checkout")
    subprocess.run([sys.executable, "-m", "compileall", "-q", "serve", NAME], cwd=checkout, check=True)
    (checkout / "models" / "densenet121.onnx").write_bytes(b"large")
    (checkout / "serve.toml").write_text("port = 6000\n")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(checkout)]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()
