"""Reads what a model file tells about itself: its metadata, in JSON, and the export's report beside it."""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from serve.config.regular_file import read_text
from serve.errors import ModelError

# What the server needs to know, with values to show in a message. `preprocess.py` checks those it uses.
REQUIRED: Final[Mapping[str, Any]] = {
    "name": "mine",
    "variant": "fp32",
    "class_count": 3,
    "resize": 256,
    "interpolation": "bilinear",
    "crop": 224,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
# The end of a message about a model file that cannot be served.
REMEDY: Final = "docs/model-files.md shows how to make it servable; 'make export WEIGHTS=PATH' makes one from weights"
_VARIANTS: Final = ("fp32", "int8")
MAX_NAME: Final = 100  # characters
NAME_RULE: Final = f"1 to {MAX_NAME} printable characters without a slash"
_MAX_REPORT_BYTES: Final = 2**20


def read_card(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the metadata of a model file as a model card.

    Raises:
        ModelError: an entry is missing or invalid; the message names it and a value that would do.
    """
    missing = [key for key in REQUIRED if key not in metadata]
    if missing:
        values = ", ".join(f"{key}={json.dumps(REQUIRED[key])}" for key in missing)
        raise ModelError(f"its metadata lacks {', '.join(missing)}; add what was used in training, such as {values}")
    card: dict[str, Any] = {}
    for key, text in sorted(metadata.items()):
        try:
            card[key] = json.loads(text)
            json.dumps(card[key], ensure_ascii=False, allow_nan=False).encode()  # refuses NaN and surrogates
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f"its metadata is not JSON in '{key}'; write values as JSON, so that text is in quotes"
            ) from error
    name, variant, classes = card["name"], card["variant"], card["class_count"]
    if not (isinstance(name, str) and is_model_name(name)):
        raise ModelError(f"its metadata has name={reprlib.repr(name)}; set it to {NAME_RULE}")
    if variant not in _VARIANTS:
        raise ModelError(f'its metadata has variant={reprlib.repr(variant)}; set it to "fp32" or "int8"')
    if type(classes) is not int or classes < 1:
        raise ModelError(f"its metadata has class_count={reprlib.repr(classes)}; set it to the number of its logits")
    return card


def is_model_name(text: str) -> bool:
    """Returns whether a model can be called so: see `NAME_RULE`."""
    return text.isprintable() and 1 <= len(text) <= MAX_NAME and "/" not in text


def stem_of(model: Path) -> str:
    """Returns what the files of a model have in common: `NAME` of `NAME.onnx`, `NAME.int8.onnx`, `NAME.qdq.onnx`."""
    return model.name.removesuffix(".onnx").removesuffix(".int8").removesuffix(".qdq")


def report_file(model: Path) -> Path:
    """Returns the path of the export's report, `NAME.json` beside the files of a model."""
    return model.with_name(stem_of(model) + ".json")


def read_report(path: Path, sha256: str) -> dict[str, Any] | None:
    """Reads the speeds and the CPU from the export's report; None unless the report is about this very file."""
    try:
        report = json.loads(read_text(report_file(path), _MAX_REPORT_BYTES))
        rows = report["table"]
        return {"cpu": report["cpu"], "table": rows} if any(row["sha256"] == sha256 for row in rows) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
