"""The peers have the preprocessing, workers and threads that benchmarks/README.md describes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness import peer_catalogue
from benchmarks.harness.model_input import input_of
from benchmarks.harness.peer_catalogue import PEERS, SERVERS
from benchmarks.peer_servers import preprocess as peers
from benchmarks.peers import _INT8_WORKLOADS
from tests.references import ARRAYS, PICTURES, SMALL

# Stand-ins for the peers' packages; they print the number of workers as JSON.
STAND_INS = {
    "mosec": """
        class Worker: ...
        class Server:
            def append_worker(self, worker, num): print(json.dumps(num))
            def run(self): ...
    """,
    "litserve": """
        class LitAPI: ...
        class LitServer:
            def __init__(self, api, workers_per_device, **others): print(json.dumps(workers_per_device))
            def run(self, **others): ...
    """,
    "bentoml": """
        def service(workers, **others):
            print(json.dumps(workers))
            return lambda service: service
        api = lambda method: method
    """,
}


def large_jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (1100, 1400, 3), np.uint8)
    Image.fromarray(noise).resize((2800, 2200)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "tall.png"])
def test_a_peer_resizes_crops_and_normalises_as_torchvision_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_RESIZE", SMALL[0])
    monkeypatch.setattr(peers, "_CROP", SMALL[1])
    reference = np.load(ARRAYS)[name]
    np.testing.assert_allclose(peers.preprocess((PICTURES / name).read_bytes())[0], reference, atol=1e-5)


def test_a_peer_decodes_in_full_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    data = large_jpeg()
    decoded: list[tuple[int, int]] = []
    convert = Image.Image.convert

    def noting(image: Image.Image, *arguments: object) -> Image.Image:
        decoded.append(image.size)
        return convert(image, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "convert", noting)
    for setting in ("0", "1"):
        monkeypatch.setenv("PEER_DRAFT", setting)
        peers.preprocess(data)
    assert decoded == [(2800, 2200), (700, 550)]  # no less than twice 256


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_is_one_worker_with_all_cpus_and_b_as_many_workers_as_cpus(
    peer: peer_catalogue.Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_catalogue, "usable_cpus", lambda: 6)
    one, many = peer.specs("int8")
    assert (one.name, many.name) == (f"{peer.name} a, int8", f"{peer.name} b, int8")
    assert (one.environment["PEER_WORKERS"], one.environment["PEER_THREADS"]) == ("1", "6")
    assert (many.environment["PEER_WORKERS"], many.environment["PEER_THREADS"]) == ("6", "1")
    assert one.settings.startswith("1 worker with 6 threads each")
    assert many.settings.startswith("6 workers with 1 thread each")
    if peer.name == "mlserver":
        workers = [one.environment["MLSERVER_PARALLEL_WORKERS"], many.environment["MLSERVER_PARALLEL_WORKERS"]]
        assert workers == ["0", "6"]


@pytest.mark.parametrize("variant", ["int8", "fp32"])
def test_each_is_given_the_file_that_it_is_named_after(variant: str) -> None:
    for peer in PEERS:
        for spec in peer.specs(variant):
            model = Path(spec.environment["PEER_MODEL"]).name
            assert model == {"int8": "densenet121.int8.float-input.onnx", "fp32": "densenet121.onnx"}[variant]


def test_peers_that_draft_are_named_so_and_get_only_the_large_photograph() -> None:
    for peer in PEERS:
        for plain, draft in zip(peer.specs("int8"), peer.specs("int8", draft=True), strict=True):
            assert draft.name == f"{plain.name}, draft"
            assert (plain.environment["PEER_DRAFT"], draft.environment["PEER_DRAFT"]) == ("0", "1")
            assert {workload.photo for workload in _INT8_WORKLOADS if draft.is_sent(workload.photo)} == {"large"}
            assert all(plain.is_sent(workload.photo) for workload in _INT8_WORKLOADS)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_peers_server_starts_the_requested_number_of_workers(name: str, tmp_path: Path) -> None:
    code = "\n".join(line[8:] for line in STAND_INS[name].splitlines())
    (tmp_path / f"{name}.py").write_text(f"import json\n{code}")
    (tmp_path / "fastapi.py").write_text("class UploadFile: ...")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PEER_WORKERS": "6", "PEER_PORT": "1"}
    command = [sys.executable, str(SERVERS / f"{name}_server.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == 6


def test_a_peers_session_has_the_requested_threads_and_its_model_gets_normalised_floats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime as ort

    asked: list[tuple[int, int]] = []
    given: list[np.ndarray] = []

    class Session:
        def __init__(self, path: str, options: ort.SessionOptions, providers: list[str]) -> None:
            asked.append((options.intra_op_num_threads, options.inter_op_num_threads))

        def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            given.append(inputs["input"])
            return [np.zeros((1, 1000), np.float32)]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setenv("PEER_MODEL", "model.onnx")
    monkeypatch.setenv("PEER_THREADS", "6")
    image = (PICTURES / "rgb.png").read_bytes()
    peers.Classifier().classify(image)
    assert asked == [(6, 1)]
    assert [batch.dtype.name for batch in given] == ["float32"] * 2
    np.testing.assert_array_equal(given[1], peers.preprocess(image))


@pytest.mark.parametrize(
    ("taken", "given"), [("tensor(uint8)", ("uint8", (1, 4, 4, 3))), ("tensor(float)", ("float32", (1, 3, 4, 4)))]
)
def test_an_engine_gets_what_its_model_takes(taken: str, given: tuple[str, tuple[int, ...]]) -> None:
    session = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(type=taken)])
    batch = input_of(session, np.zeros((1, 4, 4, 3), np.uint8))
    assert (batch.dtype.name, batch.shape) == given
