"""Finds the model file to serve: a path, or a name and variant in a folder of models."""

from itertools import product
from pathlib import Path
from typing import Final

from serve.config.settings import MODELS
from serve.errors import ModelError
from serve.model.card import stem_of
from serve.printable import shortened

# In the order in which `auto` tries them.
KNOWN_MODELS: Final = ("densenet121", "efficientnet_lite0")
EMBEDDED_MODEL: Final = "efficientnet_lite0"  # in the repository; densenet121 has to be exported first
AUTO: Final = "auto"  # as a model or a variant: the first that exists
_FOLDER: Final = Path("models")  # in the working directory
QDQ_SUFFIX: Final = ".qdq.onnx"  # of the int8 file that OpenVINO runs


def model_folders(given: Path | None, model: str) -> tuple[Path, ...]:
    """Returns the folders to look for a model in: the given one, by default `./models`, then the server's own.

    `auto` does not look in `./models`: a model is taken from the working directory only if it was named.

    Args:
        given: the setting `models`.
        model: the setting `model`.
    """
    if given is None and model == AUTO:
        return (MODELS,)
    first = given or _FOLDER
    return (first,) if first.resolve() == MODELS.resolve() else (first, MODELS)


def find_model(model: str, variant: str, *folders: Path) -> Path:
    """Returns the file to load.

    Args:
        model: a path ending in `.onnx`, a name in one of `folders`, or `auto`.
        variant: `int8`, `fp32`, or `auto` for `NAME.int8.onnx` if it exists, else `NAME.onnx`. `NAME.qdq.onnx` is
            returned only if neither exists.
        folders: where to look, in this order.

    Raises:
        ModelError: there is no such file.
    """
    if model.endswith(".onnx"):
        return Path(model)
    wanted = KNOWN_MODELS if model == AUTO else (model,)
    try:
        for name, folder in product(wanted, folders):
            for candidate in _file_names(name, variant):
                if (folder / candidate).is_file():
                    return folder / candidate
        if Path(model).exists() and model not in KNOWN_MODELS:
            kind = "a folder" if Path(model).is_dir() else "not an .onnx file"
            raise ModelError(
                f"model {model} is {kind}; give an .onnx file ('make export WEIGHTS=PATH' makes one from weights)"
            )
    except OSError as error:  # the name is too long, or the folder may not be read
        raise ModelError(f"model {shortened(model, 200)}: {(error.strerror or 'unreadable').lower()}") from error
    described = " or ".join(wanted) + ("" if variant == AUTO else f", {variant},")
    raise ModelError(
        f"no model {described} in {' or '.join(f'{folder}/' for folder in folders)}; make one with 'make export' in a "
        "checkout, or choose a file with --model or a folder with --models"
    )


def fallback_warning(model: str, name: str) -> str:
    """Returns the warning that the embedded model stands in for DenseNet-121; empty if it does not.

    Args:
        model: the setting.
        name: the name of the model that was loaded.
    """
    if model != AUTO or name != EMBEDDED_MODEL:
        return ""
    return (
        f"DenseNet-121 is not exported; using the small embedded model {name}. To export it, in a checkout: "
        "make export WEIGHTS=PATH"
    )


def qdq_file(model: Path) -> Path:
    """Returns the path of the int8 file for OpenVINO beside another file of the same model."""
    return model.with_name(stem_of(model) + QDQ_SUFFIX)


def _file_names(name: str, variant: str) -> tuple[str, ...]:
    return (f"{name}.onnx",) if variant == "fp32" else (f"{name}.int8.onnx", f"{name}.onnx", f"{name}{QDQ_SUFFIX}")
