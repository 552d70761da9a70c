"""Finds the right answers for a photograph and makes a 12-megapixel image.

    .venv/runtime/bin/python -m benchmarks.harness.prepare --photo cat.jpg --folder build/benchmarks

Prints one JSON object. Right is the class that fp32 DenseNet-121 gives on onnxruntime, computed by code that shares
nothing with `serve/`, and every class at least half as probable: in a near tie, 8 bits or another JPEG decoder may
choose another. Without an exported DenseNet-121 it is the answer of the embedded model, which is served instead. The
large image is for timing only: an unambiguous bundled photograph, enlarged, with noise from a fixed seed, so that
decoding it takes as long as decoding a photograph of that size.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.harness.machine import ROOT
from serve.printable import ArgumentParser

_LARGE: Final = (4000, 3000)
_QUALITY: Final = 90
_NOISE: Final = 6.0  # standard deviation in grey levels, about that of a compact camera at a middle ISO
UNAMBIGUOUS: Final = ROOT / "tests/data/photos/coffee.jpg"
_MODEL: Final = ROOT / "models/densenet121.onnx"


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python -m benchmarks.harness.prepare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photo", type=Path, required=True, metavar="FILE")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="also make the large image, in this folder")
    options = parser.parse_args()
    prepared: dict[str, Any] = {"photo": _describe(options.photo), "unambiguous": _describe(UNAMBIGUOUS)}
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        large = options.folder / "12-megapixels.jpg"
        large.write_bytes(enlarge(UNAMBIGUOUS.read_bytes()))
        prepared["large"] = _describe(large)
    print(json.dumps(prepared))
    return 0


def enlarge(photo: bytes, quality: int = _QUALITY) -> bytes:
    """Make a JPEG of 12 megapixels from an encoded photograph; the same Pillow makes the same bytes."""
    with Image.open(io.BytesIO(photo)) as opened:
        pixels = np.asarray(opened.convert("RGB").resize(_LARGE, Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(0).normal(0, _NOISE, (*pixels.shape[:2], 1)).astype(np.float32)
    encoded = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def _describe(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        width, height = image.size
    size = path.stat().st_size
    return {"file": str(path), "bytes": size, "width": width, "height": height, "expect": _right_answers(path)}


def _right_answers(path: Path) -> str:
    """ImageNet ids, separated by commas, the most probable first."""
    if not _MODEL.is_file():
        from serve.config.settings import Config
        from serve.model.classifier import load_classifier

        classifier = load_classifier(Config())
        return classifier.classify(path.read_bytes(), 1).scored[0].label.imagenet_id or ""
    import onnxruntime as ort

    from benchmarks.peer_servers.preprocess import load_labels, preprocess

    session = ort.InferenceSession(_MODEL, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"input": preprocess(path.read_bytes())})[0][0]
    labels = load_labels()
    near = [number for number in np.argsort(-logits)[:5] if logits[number] >= logits.max() - np.log(2)]
    return ",".join(labels[str(number)][0] for number in near)


if __name__ == "__main__":
    sys.exit(main())
