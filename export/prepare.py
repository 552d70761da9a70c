"""Decides for `make serve` whether to serve a model at once or to export DenseNet-121 first.

    python export/prepare.py --weights densenet121.pth

Prints `serve` or `export` and, with weights of your own, the name of their model to standard output, and the reason to
standard error. Uses the standard library only, because
serving needs no torch if there is a model already. Waits at most ten seconds for the network.
"""

import http.client
import json
import os
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Final

if not __package__:  # run by path: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from export.files import ROOT, sha256_of
from export.known_weights import DEFAULT_ARCHITECTURE as NAME
from export.known_weights import WEIGHTS_URL, digest_of_labels, model_name
from serve.config.regular_file import open_regular
from serve.printable import ArgumentParser, one_line, printable_lines

MODELS: Final = ROOT / "models"
GIVE_UP_SECONDS: Final = 10.0
_UNUSABLE: Final = 2


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = ArgumentParser(prog="python export/prepare.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="auto", help="the model to serve: auto, a name, or a file (default: auto)")
    parser.add_argument("--weights", type=Path, help="weights to export a model from, unless it was already")
    parser.add_argument(
        "--labels", type=Path, help="labels of the model's classes, a file or a folder of class folders"
    )
    options = parser.parse_args()
    if options.labels and not options.weights:
        print(one_line(f"LABELS={options.labels}: name the weights that they belong to, WEIGHTS=PATH"), file=sys.stderr)
        return _UNUSABLE
    needed = f"WEIGHTS={options.weights}", "a state dict (.pth or .safetensors)"
    try:
        if options.weights:
            open_regular(options.weights).close()
        needed = f"LABELS={options.labels}", "a file or a folder of class folders"
        labels = digest_of_labels(options.labels) if options.labels else None
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        print(one_line(f"{needed[0]}: {reason}; {needed[1]} is needed"), file=sys.stderr)
        return _UNUSABLE
    decision, name, reason = decide(options.model, options.weights, MODELS, labels=labels)
    if reason:
        print(printable_lines(reason), file=sys.stderr)
    if decision == "fail":
        return _UNUSABLE
    sys.stdout.buffer.write(os.fsencode(f"{decision} {name}\n"))
    return 0


def decide(
    model: str, weights: Path | None, folder: Path, url: str = WEIGHTS_URL, labels: str | None = None
) -> tuple[str, str, str]:
    """Returns `serve`, `export` or `fail`, the name of the model of these weights, and the reason to show to the user.

    Args:
        model: the setting of the user.
        weights: of the user; the name is "" for published ones, so that the server chooses by its settings.
        folder: where the exported models are.
        url: where torchvision's weights are.
        labels: digest of the user's labels, None if there are none; a model with others is exported again.
    """
    if model not in ("auto", NAME):
        return "serve", "", ""
    if weights:
        sha256 = sha256_of(weights)
        name = model_name(weights, sha256)
        wanted = "" if name == NAME else name
        exported = _exported_from(folder, name)
        if exported and exported[0] == sha256 and labels in (None, exported[1]):
            return "serve", wanted, ""
        return "export", wanted, f"Exporting {'DenseNet-121' if name == NAME else name} from {weights}"
    if (folder / f"{NAME}.onnx").is_file():
        return "serve", "", ""
    if cached_weights(url).is_file():
        return "export", "", f"Exporting DenseNet-121 from {cached_weights(url)}"
    if reachable(url):
        return "export", "", "Exporting DenseNet-121 from torchvision's weights"
    tried = f"DenseNet-121 is not exported, {cached_weights(url)} does not exist, and {url} cannot be reached."
    if model == NAME:
        return "fail", "", f"{tried}\nName a state dict of your own: make serve WEIGHTS=PATH"
    instead = "Serving the small embedded model EfficientNet-Lite0 instead. For DenseNet-121: make serve WEIGHTS=PATH"
    return "serve", "", f"{tried}\n{instead}"


def cached_weights(url: str) -> Path:
    """Returns where torch's hub caches the file, by the rules of `torch.hub.get_dir`."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
    return home / "hub" / "checkpoints" / url.rsplit("/", 1)[-1]


def reachable(url: str, seconds: float = GIVE_UP_SECONDS) -> bool:
    """Returns whether the file can be downloaded; waits at most `seconds`, including name resolution."""
    print(f"Checking whether {url} can be downloaded", file=sys.stderr)
    answers: list[bool] = []

    def send_request() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):  # noqa: S310
                answers.append(True)
        except (OSError, http.client.HTTPException, ValueError):  # URLError is an OSError
            answers.append(False)

    thread = threading.Thread(target=send_request, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers == [True]


def _exported_from(folder: Path, name: str) -> tuple[str, str | None] | None:
    """Returns the sha256 of the weights and of the labels that a model was exported from, if its report says so."""
    try:
        report = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        its_own = any(row["sha256"] == sha256_of(folder / f"{name}.onnx") for row in report["table"])
        return (str(report["weights_sha256"]), report.get("labels_sha256")) if its_own else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    sys.exit(main())
