"""Building the image: the cost of a change, a build without torch, and reproducibility."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx2
import pytest

from serve.config.cpus import cpu_features, cpu_vendor
from tests.container.conftest import SBOM, TABLE
from tests.container.engine import (
    DOCKER,
    LOCKED_DOWN,
    ROOT,
    Entry,
    Image,
    build,
    docker,
    running,
)
from tests.project_copy import copy_project

TAG = "densenet-server-test"
MOST_BYTES_WITH_OPENVINO = 245_000_000


@pytest.fixture(scope="module", autouse=True)
def remove_images() -> object:
    yield
    for name in docker("images", "--format", "{{.Repository}}:{{.Tag}}", TAG).splitlines():
        docker("rmi", name)


def note(what: str, figure: str) -> None:
    TABLE.setdefault("builds", []).append(f"{what:<28}{figure}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project, including weights in models/weights."""
    copy = copy_project(tmp_path / "project")
    weights = ROOT / "models" / "weights"
    if weights.is_dir():
        shutil.copytree(weights, copy / "models" / "weights", dirs_exist_ok=True)
    return copy


def test_a_changed_server_is_rebuilt_in_seconds_without_an_export(tree: Path, image_name: str) -> None:
    with (tree / "serve" / "api" / "app.py").open("a") as file:
        file.write(f"\n# changed at {time.time()}\n")
    changed = build(tree, f"{TAG}:changed")
    assert any(changed.steps("app").values()), "the change was not built"
    for stage in ("export", "deps"):
        steps = changed.steps(stage)
        assert steps
        assert not any(steps.values()), {step for step, done in steps.items() if done}
    assert changed.seconds < 60
    note("after a change in serve/", f"{changed.seconds:.1f} s")


def test_a_variant_that_does_not_exist_is_refused(tree: Path) -> None:
    with pytest.raises(AssertionError, match="efficientnet_lite0 is available in int8 only"):
        build(tree, f"{TAG}:none", MODEL="efficientnet_lite0", MODEL_VARIANT="fp32", WEIGHTS="")


def test_the_embedded_model_needs_no_torch(tree: Path, cat: bytes) -> None:
    shutil.rmtree(tree / "models" / "weights", ignore_errors=True)
    small = build(tree, f"{TAG}:embedded", MODEL="efficientnet_lite0", WEIGHTS="")
    assert small.steps("export") == {}
    assert small.steps("runtime")
    with running(f"{TAG}:embedded", *LOCKED_DOWN) as container:
        answer = httpx2.post(f"{container.url}/upload", files={"file": ("cat.jpg", cat)})
        assert answer.status_code == 200
        assert answer.json()["model"] == "efficientnet_lite0"
        assert "DenseNet-121 is not exported" not in container.log  # it was requested, so nothing is missing
    size = Image.load(f"{TAG}:embedded").size
    note("with efficientnet_lite0", f"{small.seconds:.1f} s, {size / 1e6:.1f} MB")


def test_with_its_extra_heic_is_accepted_and_the_licences_are_inside(tree: Path) -> None:
    build(tree, f"{TAG}:heic", MODEL="efficientnet_lite0", WEIGHTS="", HEIC="1")
    with running(f"{TAG}:heic", *LOCKED_DOWN) as container:
        for path in sorted((ROOT / "tests" / "data" / "heic").iterdir()):
            answer = httpx2.post(f"{container.url}/upload", files={"file": path.read_bytes()}, timeout=30)
            assert answer.status_code == 200, f"{path.name}: {answer.text}"
        assert 'decoders="sealed"' in httpx2.get(f"{container.url}/metrics").text
    image = Image.load(f"{TAG}:heic")
    parts = {part["name"]: part for part in json.loads(image.contents[SBOM])["components"]}
    assert parts["pi-heif"]["purl"].startswith("pkg:pypi/pi-heif@")
    for name in ("libheif", "libde265"):
        assert re.fullmatch(rf"pkg:github/strukturag/{name}@v\d+\.\d+\.\d+", parts[name]["purl"])
        assert parts[name]["licenses"] == [{"license": {"id": "LGPL-3.0-or-later"}}]
        assert [path for path in image.contents if f"/pi_heif.libs/{name}-" in path]
    assert "LGPL-3.0-or-later" in image.config["config"]["Labels"]["org.opencontainers.image.licenses"].split()
    for text, title in (("LGPL-3", b"GNU LESSER GENERAL PUBLIC LICENSE"), ("GPL-3", b"GNU GENERAL PUBLIC LICENSE")):
        (found,) = (name for name in image.contents if re.search(rf"/pi_heif-[^/]+/licenses/{text}$", name))
        assert title in image.contents[found]
    note("with HEIC", f"{image.size / 1e6:.1f} MB with efficientnet_lite0")


def test_heic_is_turned_on_by_1_only(tree: Path) -> None:
    with pytest.raises(AssertionError, match="HEIC=yes is not 1 or empty"):
        build(tree, f"{TAG}:none", MODEL="efficientnet_lite0", WEIGHTS="", HEIC="yes")


if cpu_vendor() == "GenuineIntel":

    def test_with_openvino_it_is_small_and_runs_on_every_cpu(tree: Path, cat: bytes) -> None:
        made = build(tree, f"{TAG}:openvino", OPENVINO="1")
        assert not any(done for step, done in made.steps("export").items() if "export_onnx.py" in step)
        image = Image.load(f"{TAG}:openvino")
        assert image.size <= MOST_BYTES_WITH_OPENVINO
        assert [name for name in image.contents if name.endswith(".onnx")] == ["app/models/densenet121.qdq.onnx"]
        parts = {part["name"]: part for part in json.loads(image.contents[SBOM])["components"]}
        assert parts["onnxruntime-ep-openvino"]["purl"].startswith("pkg:pypi/onnxruntime-ep-openvino@")
        assert [name for name in image.contents if name.endswith("onnxruntime_ep_openvino/third-party-programs.txt")]
        features = cpu_features()
        wanted = "openvino" if features & {"avx512_vnni", "avx_vnni"} else "cpu"
        seconds = []
        for cache in ((), ("--tmpfs", "/cache:mode=1777"), ("--env", "SERVE_ENGINE=cpu")):
            settings = ("--env", "SERVE_ENGINE_CACHE=/cache") if "--tmpfs" in cache else ()
            with running(f"{TAG}:openvino", *LOCKED_DOWN, *cache, *settings) as container:
                seconds.append(container.seconds_to_ready)
                card = httpx2.get(f"{container.url}/model").json()
                assert card["engine"] == ("cpu" if "SERVE_ENGINE=cpu" in cache else wanted)
                answer = httpx2.post(f"{container.url}/upload", files={"file": ("cat.jpg", cat)}, timeout=30)
                assert answer.status_code == 200, answer.text
                if os.environ.get("WEIGHTS"):
                    assert answer.json()["label"] == "Egyptian_cat"
        megabytes = f"{image.size / 1e6:.1f} MB, {image.compressed / 1e6:.1f} gzipped"
        note("with OpenVINO", f"{megabytes}; ready in {seconds[0]:.1f} s, with the cpu engine in {seconds[2]:.1f}")

else:

    def test_with_openvino_it_is_refused_where_the_export_cannot_measure_the_model(tree: Path) -> None:
        # The line that the step printed; the builder repeats the step's command, which has these words too.
        printed = r"\n#\d+ [\d.]+ ENGINE=openvino: the export made no model for OpenVINO; it says above why\n"
        with pytest.raises(AssertionError, match=printed):
            build(tree, f"{TAG}:none", OPENVINO="1")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"MODEL": "efficientnet_lite0"}, "not efficientnet_lite0, auto"),
        ({"MODEL_VARIANT": "fp32"}, "not densenet121, fp32"),
    ],
)
def test_openvino_is_refused_for_other_models(tree: Path, options: dict[str, str], reason: str) -> None:
    with pytest.raises(AssertionError, match=f"ENGINE=openvino runs the int8 model of DenseNet-121, {reason}"):
        build(tree, f"{TAG}:none", OPENVINO="1", **options)


def test_an_engine_that_does_not_exist_is_refused(tree: Path) -> None:
    with pytest.raises(AssertionError, match="ENGINE=gpu is not openvino or empty"):
        build(tree, f"{TAG}:none", "--build-arg", "ENGINE=gpu", MODEL="efficientnet_lite0", WEIGHTS="")


def test_debug_has_a_shell_and_the_same_server(tree: Path, image_name: str) -> None:
    build(tree, f"{TAG}:debug", "--target", "debug")
    run = ("run", "--rm", "--network", "none", "--entrypoint", "sh", f"{TAG}:debug", "-c")
    digest = docker(*run, "id -u && python -m pip --version >/dev/null && sha256sum /app/serve/api/app.py").split()
    inside = Image.load(image_name).entries["app/serve/api/app.py"]
    assert digest[:2] == ["0", inside.detail]


def test_the_build_context_holds_only_what_is_needed(tree: Path) -> None:
    (tree / "models" / "densenet121.onnx").write_bytes(b"of another export")
    (tree / ".venv" / "lib").mkdir(parents=True)
    (tree / ".venv" / "lib" / "large").write_bytes(bytes(1000))
    (tree / "serve" / "__pycache__").mkdir(exist_ok=True)
    (tree / "serve" / "__pycache__" / "app.cpython-311.pyc").write_bytes(b"stale")
    subprocess.run(
        [DOCKER, "build", "--quiet", "--tag", f"{TAG}:context", "--file", "-", "."],
        cwd=tree,
        input=b"FROM scratch\nCOPY . /\n",
        check=True,
        stdout=subprocess.DEVNULL,
    )
    contents = Image.load(f"{TAG}:context").contents
    assert {path.split("/")[0] for path in contents} == {
        "LICENSE", "container", "export", "imagenet_class_index.json", "models", "requirements", "serve", "tests",
    }  # fmt: skip
    assert not [path for path in contents if "__pycache__" in path or path.endswith("densenet121.onnx")]
    ours = sum(len(content) for path, content in contents.items() if not path.startswith("models/weights/"))
    assert ours < 10_000_000


def test_two_builds_of_a_commit_have_the_same_contents(tree: Path, image_name: str, image: Image) -> None:
    """The second build has no cache and another folder. Timestamps are not compared."""
    second = build(tree, f"{TAG}:second", "--no-cache")
    assert list(second.steps("export").values()).count(True) >= 7
    again = Image.load(f"{TAG}:second")
    assert difference(image.entries, again.entries) == []
    note(
        "build without cache",
        f"{second.seconds:.0f} s; {len(again.entries)} files, links and folders, identical to the first build",
    )


def difference(first: dict[str, Entry], second: dict[str, Entry]) -> list[str]:
    return sorted(path for path in first.keys() | second.keys() if first.get(path) != second.get(path))


def test_a_build_without_an_engine_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "image", "DOCKER=/nonexistent/docker"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "no Docker engine answers" in done.stderr
