"""A model file runs on the engine that it names, and OpenVINO's plug-in opens no socket."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest

from export.engines import CPU, ENTRY, OPENVINO, engine_of, open_session, require_openvino
from export.errors import EngineError
from serve.config.settings import ROOT
from serve.model import openvino_plugin
from tests.tiny_model import tiny_model


def named(engine: object) -> bytes:
    """A small model whose metadata names an engine."""
    model = onnx.load_model_from_string(tiny_model())
    model.metadata_props.add(key=ENTRY, value=json.dumps(engine))
    return bytes(model.SerializeToString())


def test_a_file_names_its_engine_and_is_otherwise_the_cpu_providers() -> None:
    assert engine_of(named(OPENVINO)) == OPENVINO
    assert engine_of(tiny_model()) == CPU
    assert open_session(tiny_model(), 1).get_providers() == ["CPUExecutionProvider"]


def test_without_the_plug_in_a_file_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_plugin, "PLUGIN", "onnxruntime_ep_absent")
    reason = (
        "^the plug-in onnxruntime-ep-absent is not installed; it exists for Linux on x86-64 and Intel's CPUs, "
        f"and was looked for in {re.escape(sys.prefix)}$"
    )
    with pytest.raises(EngineError, match=reason):
        require_openvino()
    with pytest.raises(EngineError, match=reason):
        open_session(named(OPENVINO), 1)


# Kills the process at its first call of socket(), which a native library makes unseen by Python.
FORBID_SOCKETS = """
import ctypes, struct
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in [
    (0x20, 0, 0, 0),          # load the number of the system call
    (0x15, 0, 1, 41),         # socket on x86-64
    (0x06, 0, 0, 0x80000000), # kill the process
    (0x06, 0, 0, 0x7FFF0000), # allow
]))
libc = ctypes.CDLL(None, use_errno=True)
rules = ctypes.create_string_buffer(struct.pack("HP", 4, ctypes.addressof(program)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, rules, 0, 0) == 0
"""

if not openvino_plugin.obstacle():

    def run_without_sockets(code: str, model: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", FORBID_SOCKETS + code], input=model, capture_output=True, cwd=ROOT, check=False
        )

    def test_openvino_runs_a_file_for_it() -> None:
        session = open_session(named(OPENVINO), 1)
        assert session.get_providers()[0] == "OpenVINOExecutionProvider"
        image = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
        on_cpu = open_session(tiny_model(), 1).run(None, {"input": image})[0]
        np.testing.assert_allclose(session.run(None, {"input": image})[0], on_cpu, atol=1e-3)

    def test_what_openvino_cannot_run_is_an_error_and_no_other_engine_runs_it() -> None:
        int8 = onnx.load(ROOT / "models" / "efficientnet_lite0.onnx")
        int8.metadata_props.add(key=ENTRY, value=json.dumps(OPENVINO))
        with pytest.raises(EngineError, match=r"^OpenVINO cannot run the model: "):
            open_session(int8.SerializeToString(), 1)

    def test_openvino_opens_no_socket_and_imports_no_telemetry() -> None:
        code = """
import sys, numpy
from export.engines import open_session
session = open_session(sys.stdin.buffer.read(), 2)
for _ in range(3):
    session.run(None, {"input": numpy.zeros((1, 3, 224, 224), "f")})
print(session.get_providers()[0], [name for name in sys.modules if "telemetry" in name])
"""
        done = run_without_sockets(code, named(OPENVINO))
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.decode() == "OpenVINOExecutionProvider []\n"
        assert run_without_sockets("import socket; socket.socket()", b"").returncode == -signal.SIGSYS
