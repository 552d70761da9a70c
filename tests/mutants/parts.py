"""Lists which tests cover which source, and in which environment they run.

Name as few tests as cover a part well: a mutant that survives costs the time of all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

RUNTIME: Final = ".venv/runtime/bin/python"
EXPORT: Final = ".venv/export/bin/python"


@dataclass(frozen=True)
class Part:
    """A part of the source with its tests.

    Attributes:
        name: The part's name.
        sources: File → the functions and classes in it to mutate; empty for the whole file.
        tests: Files or node ids of the tests.
        python: The interpreter, relative to the project.
        without: Tests whose name or fixtures contain one of these words are left out, because they are slow.
    """

    name: str
    sources: Mapping[str, tuple[str, ...]]
    tests: tuple[str, ...]
    python: str = RUNTIME
    without: tuple[str, ...] = ()


PARTS: Final = (
    Part(
        "scheduler",
        {
            "serve/scheduling/scheduler.py": (),
            "serve/scheduling/queue_limit.py": (),
            "serve/scheduling/slow_lane.py": (),
            "serve/scheduling/task.py": (),
        },
        ("tests/serve/test_scheduler.py",),
    ),
    Part(
        "batches",
        {"serve/scheduling/batch_scheduler.py": ()},
        ("tests/serve/test_batch_scheduler.py",),
    ),
    Part(
        "engines",
        {"serve/model/engine_choice.py": (), "serve/model/engines.py": ()},
        ("tests/serve/test_engines.py", "tests/serve/test_model.py"),
    ),
    Part(
        "decoders",
        {
            "serve/imaging/pool.py": (),
            "serve/imaging/decoder_process.py": (),
            "serve/imaging/fork_server.py": ("ForkServer",),
            "serve/imaging/messages.py": (),
            "serve/imaging/replies.py": (),
            "serve/imaging/limits.py": (),
            "serve/imaging/memory.py": (),
            "serve/imaging/other_process.py": (),
            "serve/imaging/sandbox.py": (),
        },
        ("tests/serve/test_sandbox.py", "tests/serve/test_decoders.py"),
    ),
    Part(
        "upload",
        {
            "serve/api/upload.py": (),
            "serve/api/form.py": (),
            "serve/api/header_parameters.py": (),
            "serve/imaging/non_images.py": (),
            "serve/api/parameters.py": ("parse_query", "parse_top_k", "parse_fraction", "parse_switch"),
            "serve/scheduling/upload_budget.py": (),
        },
        (
            "tests/serve/test_upload.py",
            "tests/serve/test_form.py",
            "tests/serve/test_upload_budget.py",
            "tests/serve/test_limits.py",
            "tests/field/test_what_is_sent.py",
        ),
        without=("milliseconds",),
    ),
    Part(
        "deadlines",
        {
            "serve/scheduling/in_flight.py": (),
            "serve/scheduling/lifecycle.py": (),
            "serve/api/parameters.py": ("parse_timeout",),
        },
        (
            "tests/serve/test_lifecycle.py",
            "tests/serve/test_deadlines.py",
            "tests/serve/test_parameters.py",
            "tests/serve/test_app.py",
        ),
    ),
    Part(
        "keys",
        {"serve/api/api_keys.py": (), "serve/api/app.py": ("HandlerRoute", "_api_key")},
        ("tests/serve/test_api_keys.py", "tests/serve/test_paths.py"),
    ),
    Part(
        "origins",
        {"serve/config/hosts.py": (), "serve/api/boundary.py": ("OriginGuard",)},
        ("tests/serve/test_hosts.py", "tests/serve/test_app.py"),
    ),
    Part(
        "preprocess",
        {"serve/imaging/preprocess.py": (), "serve/imaging/resize.py": (), "serve/imaging/normalise.py": ()},
        ("tests/serve/test_preprocess.py", "tests/serve/test_decoding.py"),
    ),
    Part(
        "postprocess",
        {"serve/model/postprocess.py": (), "serve/model/class_index.py": ()},
        ("tests/serve/test_postprocess.py", "tests/serve/test_regular_file.py"),
    ),
    Part(
        "gate",
        {
            "export/int8/gate.py": (),
            "export/int8/choice.py": ("choose_photographs", "choose_part"),
            "export/int8/pipeline.py": ("try_int8", "_new_calibration"),
            "export/evaluate.py": ("Comparison", "compare", "label_of", "logits_of"),
            "export/int8/calibration.py": ("Calibration", "encode", "load"),
            "export/int8/held_out.py": (),
            "export/files.py": (),
        },
        ("tests/export/test_gate.py", "tests/export/test_files.py", "tests/export/test_int8_export.py"),
        EXPORT,
    ),
    Part(
        "quantization",
        {
            "export/int8/quant_params.py": (),
            "export/int8/quantize.py": (),
            "export/int8/bias_correction.py": (),
            "export/int8/graph_passes.py": (),
            "export/int8/calibration.py": ("observe_ranges", "observe_means", "rounded", "values_of"),
            "export/int8/pipeline.py": ("rewrite", "make_int8", "calibrate", "record_rounding"),
            "export/int8/pixel_input.py": (),
            "export/int8/rounding.py": (),
        },
        (
            "tests/export/test_calibration.py",
            "tests/export/test_quantize.py",
            "tests/export/test_graph_passes.py",
            "tests/export/test_rounding.py",
        ),
        EXPORT,
        without=("exported", "real_densenet", "resnet18"),
    ),
    Part(
        "qdq",
        {"export/int8/qdq.py": (), "export/int8/openvino.py": ()},
        ("tests/export/test_qdq.py",),
        EXPORT,
        without=("exported", "resnet18"),
    ),
)
