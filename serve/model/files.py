"""Which model file is served: a path, or a model's name and variant among the files of `models/`.

Errors that leave here: `ModelError`, naming what was looked for.
"""

from pathlib import Path
from typing import Final

from serve.errors import ModelError
from serve.printable import shortened

# In the order of preference of `auto`: the first needs an export, the last comes with the project.
NAMES: Final = ("densenet121", "efficientnet_lite0")
EMBEDDED: Final = "efficientnet_lite0"
AUTO: Final = "auto"


def find_model(model: str, variant: str, folder: Path) -> Path:
    """The file to load.

    model: a path ending in `.onnx`, a name in `folder`, or `auto` for the best that is there. variant: `int8`, `fp32`,
    or `auto` for int8 where its export let it pass.
    """
    if model.endswith(".onnx"):
        return Path(model)
    wanted = NAMES if model == AUTO else (model,)
    try:
        for name in wanted:
            for candidate in _candidates(name, variant):
                if (folder / candidate).is_file():
                    return folder / candidate
        if Path(model).exists() and model not in NAMES:
            kind = "a folder" if Path(model).is_dir() else "no .onnx file"
            raise ModelError(
                f"model {model} is {kind}; name an .onnx file, as 'make export WEIGHTS=PATH' makes one of weights"
            )
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ModelError(f"model {shortened(model, 200)}: {(error.strerror or 'unreadable').lower()}") from error
    described = " or ".join(wanted) + ("" if variant == AUTO else f", {variant},")
    raise ModelError(
        f"no model {described} in {folder.name}/; make one with 'make export', or name a file with --model"
    )


def _candidates(name: str, variant: str) -> tuple[str, ...]:
    return (f"{name}.onnx",) if variant == "fp32" else (f"{name}.int8.onnx", f"{name}.onnx")
