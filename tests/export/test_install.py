"""`requirements/install.py` makes environments from lock files and makes them again only when those change."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from serve.config.settings import ROOT
from tests.local_host import serving

SCRIPT = ROOT / "requirements" / "install.py"


def wheel(folder: Path, name: str, version: str, code: str = "") -> str:
    """A wheel of one module, and its lock file entry."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}.py"), code)
        archive.writestr(
            zipfile.ZipInfo(f"{info}/METADATA"), f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            zipfile.ZipInfo(f"{info}/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def default_index(tmp_path: Path) -> Path:
    return tmp_path / "wheels"


def install(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "venv"), *map(str, arguments)],
        env={
            "PIP_NO_INDEX": "0",
            "PIP_FIND_LINKS": str(tmp_path / "wheels"),
            "PIP_CONFIG_FILE": "/dev/null",
            "PATH": "",
        }
        | {"PIP_INDEX_URL": (tmp_path / "empty").as_uri()},
        capture_output=True,
        text=True,
        check=False,
    )


def version_of(tmp_path: Path, module: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({module!r}))"
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", code], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "not installed"


def test_an_environment_is_remade_only_when_a_lock_file_changes(tmp_path: Path, default_index: Path) -> None:
    runtime, test = tmp_path / "runtime.txt", tmp_path / "test.txt"
    runtime.write_text(wheel(default_index, "alpha", "1.0"))
    test.write_text(wheel(default_index, "beta", "1.0"))
    first = install(tmp_path, runtime)
    assert first.returncode == 0, first.stderr
    assert version_of(tmp_path, "alpha") == "1.0"
    assert "Installing" in first.stdout

    mark = tmp_path / "venv" / "mark"
    mark.touch()
    assert install(tmp_path, runtime).stdout == ""  # nothing to do
    assert install(tmp_path, runtime, test).returncode == 0  # another lock file is installed in addition
    assert version_of(tmp_path, "beta") == "1.0"
    assert mark.exists()

    runtime.write_text(wheel(default_index, "alpha", "2.0"))
    assert install(tmp_path, runtime).returncode == 0
    assert not mark.exists()
    assert (version_of(tmp_path, "alpha"), version_of(tmp_path, "beta")) == ("2.0", "1.0")


def test_an_install_that_fails_is_tried_again(tmp_path: Path, default_index: Path) -> None:
    lock = tmp_path / "runtime.txt"
    entry = wheel(default_index, "alpha", "1.0")
    lock.write_text(entry.replace("sha256:", "sha256:0")[: len(entry)])
    failed = install(tmp_path, lock)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("install: pip failed")
    lock.write_text(entry)
    assert install(tmp_path, lock).returncode == 0
    assert version_of(tmp_path, "alpha") == "1.0"


def test_a_missing_lock_file_is_named(tmp_path: Path) -> None:
    done = install(tmp_path, tmp_path / "none.txt")
    assert done.returncode == 2
    assert "none.txt: No such file" in done.stderr


@pytest.fixture
def torch_lock(tmp_path: Path, default_index: Path) -> Path:
    lock = tmp_path / "export.txt"
    entries = [wheel(default_index, name, "1.0") for name in ("alpha", "torch", "torchvision", "triton")]
    entries += [wheel(default_index, "nvidia_cublas", "1.0").replace("nvidia_cublas==", "nvidia-cublas==")]
    lock.write_text("".join(entries))
    return lock


def test_a_cpu_index_gives_torch_without_cuda(tmp_path: Path, torch_lock: Path) -> None:
    for name in ("torch", "torchvision"):  # http.server lists a folder as a page of links, as pip expects
        wheel(tmp_path / "cpu" / name, name, "1.0+cpu")
    with serving(tmp_path / "cpu") as index:
        done = install(tmp_path, torch_lock, "--torch-index", index)
    assert done.returncode == 0, done.stderr
    assert {
        name: version_of(tmp_path, name) for name in ("alpha", "torch", "torchvision", "triton", "nvidia-cublas")
    } == {
        "alpha": "1.0",
        "torch": "1.0+cpu",
        "torchvision": "1.0+cpu",
        "triton": "not installed",
        "nvidia-cublas": "not installed",
    }


def test_a_cpu_index_that_cannot_be_reached_falls_back_to_the_default(tmp_path: Path, torch_lock: Path) -> None:
    done = install(tmp_path, torch_lock, "--torch-index", "http://127.0.0.1:9/cpu")
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:9/cpu cannot be reached" in done.stdout
    assert version_of(tmp_path, "torch") == "1.0"
    assert version_of(tmp_path, "nvidia-cublas") == "1.0"


def test_without_a_cpu_index_torch_comes_from_the_default_one(tmp_path: Path, torch_lock: Path) -> None:
    done = install(tmp_path, torch_lock, "--torch-index", "none")
    assert done.returncode == 0, done.stderr
    assert "reached" not in done.stdout
    assert version_of(tmp_path, "torch") == "1.0"
