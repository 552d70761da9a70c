"""`make cpus`: run the int8 models on the native CPU and on emulated ones, and compare the integers they compute.

Each model file gets its last uint8 tensor as a second output and sees ten images, prepared once on the native CPU. On
every CPU that tensor must be the same bit for bit, the logits within 1e-4, and the best class the same. A control, the
embedded model with weights that can saturate, must differ between a CPU that adds products in 16 bits (Haswell) and one
that does not (Nehalem). Each CPU first reports what it is. Exits with 1 if a bound is broken, with 2 if something is
missing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx

from serve.imaging.preprocess import Preprocessing
from tests.cpus import models
from tests.cpus.machines import CACHE, HASWELL, MACHINES, NATIVE, NEHALEM, ROOT, Machine, SetupError, prepare
from tests.cpus.verdict import Output, compare, contradictions, not_covered

EMBEDDED = ROOT / "models" / "efficientnet_lite0.onnx"
EXPORTED = ROOT / "models" / "densenet121.int8.onnx"
CONTROL = "control"
LIMIT_SECONDS = 400


def main() -> int:
    """Runs everything and returns the process's exit status."""
    started = time.monotonic()
    try:
        prepare()
        files = served_files()
        with tempfile.TemporaryDirectory() as scratch:
            failures = check(files, Path(scratch))
    except SetupError as error:
        print(f"make cpus: {error}", file=sys.stderr)
        return 2
    for failure in failures:
        print(f"FAILED: {failure}")
    verdict = "not the same" if failures else "the same integers on every CPU shown"
    print(f"make cpus: {verdict}; {len(files)} models, {len(MACHINES)} CPUs, {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


def served_files() -> dict[str, Path]:
    """Returns the int8 files that are served by name; exports DenseNet-121 if it is missing and WEIGHTS is given."""
    files = {"efficientnet_lite0": EMBEDDED}
    if EXPORTED.exists():
        return {"densenet121": EXPORTED, **files}
    weights = os.environ.get("WEIGHTS")
    if not weights:
        print(
            f"not covered: {EXPORTED.relative_to(ROOT)}, which is not exported: make export, or make cpus WEIGHTS=PATH"
        )
        return files
    output = CACHE / "export" / "densenet121.onnx"
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "export/export_onnx.py", "--weights", weights, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"the export of {weights} failed:\n{done.stdout}{done.stderr}")
    return {"densenet121": output.with_name("densenet121.int8.onnx"), **files}


def check(files: dict[str, Path], scratch: Path) -> list[str]:
    """Runs the models on all CPUs, prints a line for each, and returns what is wrong."""
    failures = write_models(files, scratch)
    jobs = {machine: [*files, CONTROL] if machine in (NEHALEM, HASWELL) else list(files) for machine in MACHINES}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(jobs, pool.map(run, jobs.keys(), jobs.values(), repeat(scratch)), strict=True))
    for machine, result in results.items():
        cpu = json.loads(str(result["cpu"]))
        print(f"{machine.name}: {cpu['machine']}, {cpu['identity']}, {' '.join(cpu['features'])}; ", end="")
        print(f"onnxruntime {cpu['onnxruntime']}")
        failures += [f"{machine.name} {what}" for what in contradictions(machine, cpu)]
        for name, path in files.items():
            if machine is NATIVE:
                logits = models.served_logits(path, np.load(scratch / f"{name}.npy"))
                if not np.array_equal(logits, result[f"{name}.logits"]):
                    failures.append(f"{name}: the second output changes the logits")
                continue
            compared = compare(output(results[NATIVE], name), output(result, name))
            print(f"  {name:18}  {compared}")
            if not compared.passed:
                failures.append(f"{name} on {machine.name}")
    control = compare(output(results[NEHALEM], CONTROL), output(results[HASWELL], CONTROL))
    print(f"control, weights that can saturate, Haswell against Nehalem: {control}")
    if control.same_integers:
        failures.append("the control computes the same integers on Haswell, so this check cannot fail")
    missing = not_covered([json.loads(str(result["cpu"])) for result in results.values()])
    print(f"not covered: {'; '.join(missing)} (neither this CPU nor one that qemu emulates)")
    return failures


def write_models(files: dict[str, Path], scratch: Path) -> list[str]:
    """Writes each model with its second output, its inputs and the control; returns what is wrong."""
    failures = []
    given = os.environ.get("PHOTOS")
    folders = [Path(given)] if given else [ROOT / "tests" / "data" / part for part in ("photos", "pictures")]
    for name, path in files.items():
        model = onnx.load(path)
        spec = Preprocessing.from_card({entry.key: json.loads(entry.value) for entry in model.metadata_props})
        np.save(scratch / f"{name}.npy", models.inputs_of(model, spec, folders))
        onnx.save(models.with_integers(model), scratch / f"{name}.onnx")
        served, shown = (
            models.optimized_nodes(file, scratch / "optimized") for file in (path, scratch / f"{name}.onnx")
        )
        if served != shown:
            failures.append(f"{name}: the second output changes the nodes that onnxruntime runs")
    onnx.save(models.with_integers(models.without_guard(onnx.load(EMBEDDED))), scratch / f"{CONTROL}.onnx")
    (scratch / f"{CONTROL}.npy").symlink_to("efficientnet_lite0.npy")
    return failures


def run(machine: Machine, names: list[str], scratch: Path) -> dict[str, Any]:
    """Runs the models on a CPU and returns what `infer` wrote."""
    result = scratch / f"{machine.name}.npz"
    done = subprocess.run(
        [*machine.command(), "-m", "tests.cpus.infer", str(scratch), str(result), *names],
        cwd=ROOT,
        env=machine.environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise SetupError(f"{machine.name}: the run failed with status {done.returncode}:\n{done.stderr}")
    with np.load(result) as arrays:
        return dict(arrays)


def output(result: dict[str, Any], name: str) -> Output:
    """Returns one model's output out of what `infer` wrote."""
    return Output(result[f"{name}.sha256"].tolist(), result[f"{name}.logits"])


if __name__ == "__main__":
    sys.exit(main())
