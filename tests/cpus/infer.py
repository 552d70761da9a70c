"""Runs models on the CPU that it is started on, native or emulated.

    python -m tests.cpus.infer FOLDER RESULT.npz MODEL...

Imports only numpy, onnxruntime and `serve`, because an emulated arm64 has no other packages. For each MODEL it reads
FOLDER/MODEL.onnx and its inputs FOLDER/MODEL.npy, one image at a time, through a session as the server makes it. RESULT
gets `MODEL.logits` FP32 `[images, classes]` and `MODEL.sha256` `[images]` of the file's last uint8 tensor, and `cpu`,
which the CPU itself reports.
"""

import ctypes
import hashlib
import json
import mmap
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from serve.model import ort_sessions  # before onnxruntime, whose telemetry it disables

import onnxruntime  # isort: skip

# Writes eax, ebx, ecx and edx of leaf edi, subleaf esi to [rdx].
_CPUID = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
_READ_MIDR = bytes.fromhex("000038d5 c0035fd6")  # mrs x0, midr_el1; ret
# Feature → leaf, subleaf, register (0 is eax), bit.
_X86_FEATURES = {
    "sse4_2": (1, 0, 2, 20),
    "fma": (1, 0, 2, 12),
    "avx": (1, 0, 2, 28),
    "avx2": (7, 0, 1, 5),
    "avx512f": (7, 0, 1, 16),
    "avx512bw": (7, 0, 1, 30),
    "avx512_vnni": (7, 0, 2, 11),
    "amx_int8": (7, 0, 3, 25),
    "avx_vnni": (7, 1, 0, 4),
}
# Feature → entry of the auxiliary vector (16 is AT_HWCAP, 26 AT_HWCAP2), bit.
_ARM_FEATURES = {"asimd": (16, 1), "asimddp": (16, 20), "sve": (16, 22), "svei8mm": (26, 9), "i8mm": (26, 13)}


def _machine_code(code: bytes, result: Any, *arguments: Any) -> Any:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    function = ctypes.CFUNCTYPE(result, *arguments)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    function.page = page  # type: ignore[attr-defined]  # or it would be unmapped
    return function


def _cpuid(leaf: int, subleaf: int = 0) -> list[int]:
    registers = (ctypes.c_uint32 * 4)()
    read = _machine_code(_CPUID, None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
    read(leaf, subleaf, ctypes.addressof(registers))
    return list(registers)


def _x86() -> dict[str, Any]:
    highest, signature = _cpuid(0)[0], _cpuid(1)[0]
    leaves = {(1, 0): _cpuid(1)}
    if highest >= 7:
        leaves[7, 0] = _cpuid(7)
        leaves[7, 1] = _cpuid(7, 1) if leaves[7, 0][0] >= 1 else [0] * 4
    none = [0] * 4
    found = [
        name
        for name, (leaf, subleaf, register, bit) in _X86_FEATURES.items()
        if leaves.get((leaf, subleaf), none)[register] >> bit & 1
    ]
    return {"identity": f"CPUID signature {signature:#x}", "features": found}


def _arm64() -> dict[str, Any]:
    libc = ctypes.CDLL(None)
    libc.getauxval.restype, libc.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    found = [name for name, (entry, bit) in _ARM_FEATURES.items() if libc.getauxval(entry) >> bit & 1]
    return {"identity": f"MIDR_EL1 {_machine_code(_READ_MIDR, ctypes.c_uint64)():#x}", "features": found}


def describe_cpu() -> dict[str, Any]:
    """Returns architecture, identity and features as the CPU itself reports them: CPUID, MIDR_EL1 and hwcaps.

    /proc/cpuinfo would not do: qemu 7.2 shows the host's.
    """
    machine = platform.machine()
    return {"machine": machine, **(_x86() if machine == "x86_64" else _arm64())}


def main(folder: Path, result: Path, names: list[str]) -> None:
    """Runs the models and writes the result."""
    arrays: dict[str, Any] = {"cpu": json.dumps(describe_cpu() | {"onnxruntime": onnxruntime.__version__})}
    for name in names:
        model = ort_sessions.cpu_session(folder / f"{name}.onnx", 1)
        logits, integers = zip(
            *(model.run(None, {ort_sessions.INPUT_NAME: image[None]}) for image in np.load(folder / f"{name}.npy")),
            strict=True,
        )
        arrays[f"{name}.logits"] = np.concatenate(logits)
        arrays[f"{name}.sha256"] = [hashlib.sha256(values.tobytes()).hexdigest() for values in integers]
    np.savez(result, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
