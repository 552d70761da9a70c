"""Which engine is chosen, and that every engine gives the same logits for batches of any size."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from starlette.testclient import TestClient

from serve.api.app import create_app
from serve.config.settings import Config
from serve.errors import ConfigError, ModelError
from serve.model import engine_choice, engines, openvino_plugin, ort_sessions
from serve.model.classifier import Classifier, load_classifier
from serve.model.engine_choice import EngineChoice, choose_engine
from serve.model.engines import CpuEngine, CudaEngine, EngineOptions, OpenVinoEngine
from serve.model.helper_threads import HelperThreads
from serve.model.session import load_model
from tests.serve.conftest import ClientFor
from tests.tiny_model import PATH, PIXELS

AMX = {"avx2", "avx512_vnni", "amx_int8"}
VNNI = {"avx2", "avx_vnni"}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all files of DenseNet-121, where the plug-in is installed."""
    for suffix in (".onnx", ".int8.onnx", ".qdq.onnx"):
        (tmp_path / f"densenet121{suffix}").write_bytes(b"")
    monkeypatch.setattr(engine_choice, "plugin_obstacle", lambda: "")
    return tmp_path


def chosen(models: Path, engine: str = "auto", variant: str = "auto", features: Any = AMX, model: str = "auto") -> Any:
    return choose_engine(engine, model, variant, [models], features)


def test_auto_takes_openvino_where_its_file_is_there_and_the_cpu_has_amx(models: Path) -> None:
    assert chosen(models) == EngineChoice("openvino", models / "densenet121.qdq.onnx", "the CPU has AMX")


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        (lambda _: None, {"features": VNNI}, "the CPU has no AMX"),
        (lambda _: None, {"features": set()}, "the CPU has no VNNI"),
        (lambda _: None, {"variant": "fp32"}, "model_variant=fp32 is set"),
        (
            lambda folder: (folder / "densenet121.qdq.onnx").unlink(),
            {},
            "there is no densenet121.qdq.onnx, which 'make export' writes",
        ),
    ],
)
def test_auto_takes_the_cpu_otherwise_and_openvino_is_refused(
    models: Path, change: Callable[[Path], None], settings: dict[str, Any], reason: str
) -> None:
    change(models)
    choice = chosen(models, **settings)
    assert choice.engine == "cpu"
    assert choice.path.name == ("densenet121.onnx" if "variant" in settings else "densenet121.int8.onnx")
    assert reason in choice.reason
    if "AMX" in reason:  # it works there, but is no faster
        assert chosen(models, "openvino", **settings).engine == "openvino"
    else:
        with pytest.raises(ModelError, match=f"engine=openvino: .*{reason}"):
            chosen(models, "openvino", **settings)


@pytest.mark.parametrize(
    ("name", "vendor", "reason"),
    [
        ("onnxruntime_ep_absent", "GenuineIntel", "the plug-in onnxruntime-ep-absent is not installed"),
        ("onnxruntime", "AuthenticAMD", "the plug-in onnxruntime runs on Intel's CPUs only"),
    ],
)
def test_where_the_plug_in_cannot_run_the_cpu_is_taken_and_openvino_is_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch, name: str, vendor: str, reason: str
) -> None:
    monkeypatch.setattr(engine_choice, "plugin_obstacle", openvino_plugin.obstacle)
    monkeypatch.setattr(openvino_plugin, "PLUGIN", name)
    monkeypatch.setattr(openvino_plugin, "cpu_vendor", lambda: vendor)
    assert chosen(models) == EngineChoice("cpu", models / "densenet121.int8.onnx", reason)
    with pytest.raises(ModelError, match=reason):
        chosen(models, "openvino")


def test_a_file_that_is_named_is_the_one_that_is_served(models: Path) -> None:
    for name, engine in (("densenet121.int8.onnx", "cpu"), ("densenet121.qdq.onnx", "openvino")):
        choice = chosen(models, model=str(models / name), features=AMX)
        assert (choice.engine, choice.path) == (engine, models / name)
    with pytest.raises(ModelError, match=r"densenet121.int8.onnx is not a file \*.qdq.onnx"):
        chosen(models, "openvino", model=str(models / "densenet121.int8.onnx"))


def test_a_gpu_gets_the_fp32_file_and_int8_is_refused(models: Path) -> None:
    assert chosen(models, "cuda") == EngineChoice("cuda", models / "densenet121.onnx", "engine=cuda is set")
    with pytest.raises(ModelError, match="engine=cuda runs fp32 models, but model_variant=int8 is set"):
        chosen(models, "cuda", variant="int8")


def test_openvinos_file_alone_is_served_on_every_cpu(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".onnx", ".int8.onnx"):
        (models / f"densenet121{suffix}").unlink()
    path = models / "densenet121.qdq.onnx"
    assert chosen(models) == EngineChoice("openvino", path, "the CPU has AMX")
    assert chosen(models, features=VNNI) == EngineChoice("openvino", path, "densenet121.qdq.onnx is its file")
    without_vnni = chosen(models, features=set())
    assert (without_vnni.engine, without_vnni.path) == ("cpu", path)
    assert without_vnni.reason.startswith("the CPU has no VNNI")
    assert chosen(models, "cpu") == EngineChoice("cpu", path, "engine=cpu is set")
    monkeypatch.setattr(engine_choice, "plugin_obstacle", lambda: "it is not installed")
    assert chosen(models).engine == "cpu"


def test_the_engine_and_the_reason_are_told(client_for: ClientFor, config: Config) -> None:
    classifier = load_classifier(replace(config, engine="cpu"))
    classifier.close()
    assert (classifier.model.card["engine"], classifier.model.card["engine_reason"]) == ("cpu", "engine=cpu is set")
    card = client_for().get("/model").json()
    assert f'engine="{card["engine"]}",engine_reason="{card["engine_reason"]}"' in client_for().get("/metrics").text


@pytest.mark.parametrize(
    ("setting", "engine", "size"), [(0, "cpu", 1), (0, "openvino", 1), (0, "cuda", 16), (3, "cpu", 3)]
)
def test_a_batch_is_one_image_except_on_a_gpu(setting: int, engine: str, size: int) -> None:
    assert EngineOptions.from_config(Config(max_batch=setting), engine).max_batch == size


def test_a_folder_for_compiled_models_is_made_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    assert EngineOptions.from_config(Config(engine_cache=folder), "openvino").cache == folder
    assert folder.is_dir()
    with pytest.raises(ConfigError, match="engine_cache=/proc/none"):
        EngineOptions.from_config(Config(engine_cache=Path("/proc/none")), "openvino")


def images(count: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, 224, 224, 3), np.uint8)


class FakeOpenVino:
    """Static sessions as the plug-in makes them, of onnxruntime's own CPU provider; records what was run."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int, int]] = []
        self.ran: list[tuple[int, int, int]] = []

    def session(self, path: Path, batch: int, streams: int, threads: int, cache: Path | None) -> Any:
        self.made.append((batch, streams, threads))
        return (batch, streams, threads), ort_sessions.cpu_session(path, 1)

    def run(self, session: Any, batch: Any, outputs: Any) -> Any:
        assert len(batch) == session[0][0], "the shape is static"
        self.ran.append(session[0])
        return ort_sessions.run(session[1], batch, outputs)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeOpenVino:
    made = FakeOpenVino()
    monkeypatch.setattr(engines, "openvino_session", made.session)
    monkeypatch.setattr(engines, "run", made.run)
    return made


def test_a_lone_image_that_may_use_several_threads_has_an_openvino_session_of_its_own(fake: FakeOpenVino) -> None:
    OpenVinoEngine(PIXELS, EngineOptions(intra_op_threads=1, streams=2))
    assert fake.made == [(1, 2, 2)]
    fake.made.clear()
    engine = OpenVinoEngine(PIXELS, EngineOptions(intra_op_threads=4, streams=4))
    assert sorted(fake.made) == [(1, 1, 4), (1, 4, 4)]
    engine.run(images(1), all_threads=True)
    engine.run(images(1))
    assert fake.ran == [(1, 1, 4), (1, 4, 4)]


def test_openvinos_threads_are_let_go_for_images_that_run_side_by_side(
    fake: FakeOpenVino, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(HelperThreads, "keep_off", lambda _: said.append("keep off"))
    monkeypatch.setattr(HelperThreads, "let_go", lambda _: said.append("let go"))
    engine = OpenVinoEngine(PIXELS, EngineOptions(intra_op_threads=2, streams=2, max_batch=4))
    for count, all_threads in ((1, True), (1, False), (4, True)):
        engine.run(images(count), all_threads=all_threads)
    assert said == ["keep off", "let go", "let go"]
    said.clear()
    OpenVinoEngine(PIXELS, EngineOptions(streams=2)).run(images(1), all_threads=True)
    assert said == ["let go"]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [1, 1, 1]), (4, [4]), (6, [4, 1, 1]), (8, [4, 4])])
def test_openvino_runs_full_batches_and_single_images(fake: FakeOpenVino, count: int, sizes: list[int]) -> None:
    engine = OpenVinoEngine(PIXELS, EngineOptions(streams=1, max_batch=4))
    (logits,) = engine.run(images(count))
    assert [size for size, _, _ in fake.ran] == sizes
    assert np.array_equal(logits, ort_sessions.run(ort_sessions.cpu_session(PIXELS, 1), images(count))[0])


def test_cuda_runs_padded_batches_of_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU as the device, because there may be no GPU."""
    monkeypatch.setattr(engines, "cuda_session", lambda path: ort_sessions.cpu_session(path, 1))
    engine = CudaEngine(PIXELS, EngineOptions(max_batch=6), device="cpu")
    assert engine.batch_sizes == [1, 2, 4, 6]
    wanted = CpuEngine(PIXELS, EngineOptions())
    for count in (1, 2, 3, 5, 6, 7, 13):
        np.testing.assert_allclose(engine.run(images(count)), wanted.run(images(count)), rtol=0, atol=1e-4)
    assert sorted(size for size, _ in engine._bound) == [1, 2, 4, 6]


def test_cuda_is_refused_where_onnxruntime_has_none(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"engine=cuda: .* has no CUDA; install requirements/gpu.txt"):
        load_model(tiny_model, EngineOptions(), "cuda")


@pytest.mark.parametrize("falls_back", [True, False])
def test_cuda_that_does_not_start_is_an_error(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], falls_back: bool
) -> None:
    """With onnxruntime-gpu but without CUDA, onnxruntime itself falls back to the CPU."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    original = ort.InferenceSession
    calls = []

    def preload() -> None:
        calls.append("preload")
        print("Failed to load libcudnn.so.9")

    def start(path: str, options: Any, providers: list[str]) -> Any:
        calls.append("session")
        if not falls_back:
            raise RuntimeError("no device")
        return original(path, options, providers=providers[1:])

    monkeypatch.setattr(ort, "preload_dlls", preload)
    monkeypatch.setattr(ort, "InferenceSession", start)
    with pytest.raises(ModelError, match="CUDA does not start here" if falls_back else "engine=cuda"):
        load_model(tiny_model, EngineOptions(), "cuda")
    assert calls == ["preload", "session"]
    assert capsys.readouterr() == ("", "Failed to load libcudnn.so.9\n")  # standard output is for `classify`


def test_a_plug_in_that_does_not_start_is_an_error(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin: Any = ModuleType(openvino_plugin.PLUGIN)
    plugin.get_library_path = lambda: "/none.so"
    monkeypatch.setitem(sys.modules, openvino_plugin.PLUGIN, plugin)
    openvino_plugin._cpu.cache_clear()
    with pytest.raises(ModelError, match="engine=openvino: the plug-in onnxruntime_ep_openvino does not start"):
        load_model(tiny_model, EngineOptions(), "openvino")


def test_a_server_with_batches_answers_each_image(
    config: Config, classifier: Classifier, cat: bytes, coffee: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    run = CpuEngine.run

    def recorded(self: CpuEngine, batch: Any, *arguments: Any) -> Any:
        sizes.append(len(batch))
        return run(self, batch, *arguments)

    files = [("file", (name, data)) for name, data in (("a", cat), ("b", b"\xff\xd8\xff damaged"), ("c", coffee))]
    answers = []
    batched = replace(classifier, model=load_model(PATH, EngineOptions(max_batch=3)))
    batched.model.card.update(engine="cpu", engine_reason="")
    monkeypatch.setattr(CpuEngine, "run", recorded)
    for using in (classifier, batched):
        sizes.clear()
        with TestClient(create_app(replace(config, streams=1, batch_wait_ms=50), using)) as client:
            answers.append(client.post("/upload", files=files).json()["results"])
    assert sizes == [2]
    assert answers[0] == answers[1]
    assert answers[1][1]["status"] == 422
