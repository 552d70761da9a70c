"""What `SERVE_DECODE=fast` saves, and what it changes: pixels, logits, labels.

    .venv/runtime/bin/python benchmarks/decoding.py --photos DIR

Takes every JPEG below DIR: those large enough to be decoded at a reduced scale, and as many crops of each as asked for,
cut at full resolution and saved at quality 92, so that there is real detail to lose; and apart from them those of which
only the resizing differs. Enlarged pictures would prove nothing: they have no detail.
"""

import io
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image

from serve.classifier import Classifier, load_classifier
from serve.command_line import ArgumentParser, one_line
from serve.config import Config
from serve.memory import settle_allocator

_LEAST_SIDE: Final = 1024  # four times the side that pictures are resized to
_CROP_QUALITY: Final = 92
_NEAR_TIE: Final = 0.1  # between the two most probable classes


def main() -> int:
    """Run the command."""
    parser = ArgumentParser(prog="benchmarks/decoding.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of large photographs")
    parser.add_argument("--crops", type=int, default=0, metavar="N", help="crops to cut from each as well")
    parser.add_argument("--model", default="auto", help="as of python -m serve")
    options = parser.parse_args()
    settle_allocator()
    exact, fast = (load_classifier(Config(model=options.model, decode=decode)) for decode in ("exact", "fast"))
    pictures = list(jpegs(options.photos, options.crops))
    if not pictures:
        print(one_line(f"{options.photos}: no JPEG in it"), file=sys.stderr)
        return 2
    large = [picture for picture in pictures if min(picture[0]) >= _LEAST_SIDE]
    small = [picture for picture in pictures if min(picture[0]) < _LEAST_SIDE]
    for what, some in (("decoded at a reduced scale", large), ("decoded in full", small)):
        if some:
            print(one_line(f"{exact.model.name} ({exact.model.card['variant']}), {len(some)} pictures {what}"))
            compare(exact, fast, some)
    return 0


def jpegs(folder: Path, crops: int) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Size and bytes of each picture, and of the crops cut from it at places drawn from a seed."""
    draw = random.Random(1)
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink() or not path.read_bytes().startswith(b"\xff\xd8\xff"):
            continue
        with Image.open(path) as image:
            width, height = image.size
            yield (width, height), path.read_bytes()
            for _ in range(crops if min(width, height) >= _LEAST_SIDE else 0):
                side = draw.randint(_LEAST_SIDE, min(width, height))
                left, top = draw.randint(0, width - side), draw.randint(0, height - side)
                buffer = io.BytesIO()
                cut = image.convert("RGB").crop((left, top, left + side, top + side))
                cut.save(buffer, "JPEG", quality=_CROP_QUALITY)
                yield (side, side), buffer.getvalue()


def compare(exact: Classifier, fast: Classifier, pictures: list[tuple[tuple[int, int], bytes]]) -> None:
    """Print how both ways differ, over all pictures and over those that are no near tie."""
    worst, means, logits, same, clear, same_clear, ratios = [], [], [], [], [], [], []
    for (width, height), data in pictures:
        seconds = {}
        batches = {}
        for name, classifier in (("exact", exact), ("fast", fast), ("exact", exact), ("fast", fast)):
            started = time.perf_counter()
            batches[name] = classifier.prepare(classifier.open(data, 1)).batch
            seconds[name] = min(seconds.get(name, 1e9), time.perf_counter() - started)
        difference = np.abs(batches["exact"] - batches["fast"])
        worst.append(float(difference.max()))
        means.append(float(difference.mean()))
        first, second = (exact.model.logits(batches[name])[0] for name in ("exact", "fast"))
        logits.append(float(np.abs(first - second).mean()))
        same.append(bool(first.argmax() == second.argmax()))
        two = np.sort(np.exp(first - first.max()) / np.exp(first - first.max()).sum())[-2:]
        if two[1] - two[0] >= _NEAR_TIE:
            clear.append(data)
            same_clear.append(same[-1])
        ratios.append((width * height / 1e6, len(data) / 1e6, seconds["exact"] * 1000, seconds["fast"] * 1000))
    print(f"pixels, normalised: max |d| {max(worst):.3f}, mean |d| {statistics.mean(means):.4f}")
    print(f"logits: mean |d| {statistics.mean(logits):.3f}")
    print(f"top-1 agrees: {sum(same)} of {len(same)} ({sum(same) / len(same):.1%})")
    print(
        f"  where the best two classes are {_NEAR_TIE} or more apart: {sum(same_clear)} of {len(clear)} "
        f"({sum(same_clear) / max(1, len(clear)):.1%})"
    )
    print("decode and preprocess, ms:   MP    MB   exact    fast  ratio")
    for pixels, size, slow, quick in sorted(ratios)[:: max(1, len(ratios) // 12)]:
        print(f"                          {pixels:5.1f} {size:5.1f} {slow:7.1f} {quick:7.1f}  {quick / slow:5.2f}")


if __name__ == "__main__":
    sys.exit(main())
