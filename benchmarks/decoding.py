"""What `SERVE_DECODE=fast` saves, and what it changes: pixels, logits, labels.

    .venv/runtime/bin/python benchmarks/decoding.py --photos DIR

First what 12 megapixels take of a CPU, decoded and preprocessed by our server in both ways and by the peers' servers
with and without `Image.draft`: one picture as a camera would save it, and one in a file of about 1 MB, of which fast
has to take a fifth of exact at most. A JPEG's bytes are read in full at any scale, so that a larger file gains less.

Then what differs, on every JPEG below DIR: those large enough to be decoded at a reduced scale, and as many crops of
each as asked for, cut at full resolution and saved at quality 92, so that there is real detail to lose; and apart from
them those of which only the resizing differs. Enlarged pictures would prove nothing here: they have no detail.
"""

import io
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from PIL import Image

from benchmarks.harness.prepare import CERTAIN, enlarge
from benchmarks.harness.rounds import spread
from benchmarks.peer_servers.preprocess import preprocess
from benchmarks.reporting.records import Printed, add_output
from benchmarks.reporting.report import shown
from serve.config.settings import Config
from serve.model.classifier import Classifier, load_classifier
from serve.printable import ArgumentParser, one_line
from serve.scheduling.malloc import tune_malloc

_LEAST_SIDE: Final = 1024  # four times the side that pictures are resized to
_CROP_QUALITY: Final = 92
# Files of 12 megapixels: what they are → JPEG quality.
_QUALITIES: Final = {"as a camera would save it": 90, "in a file of about 1 MB": 60}
_AT_MOST: Final = 0.2  # fast of exact, in the smaller file
_NEAR_TIE: Final = 0.1  # between the two most probable classes


def main() -> int:
    """Run the command."""
    parser = ArgumentParser(prog="benchmarks/decoding.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder of large photographs")
    parser.add_argument("--crops", type=int, default=0, metavar="N", help="crops to cut from each as well")
    parser.add_argument("--model", default="auto", help="as of python -m serve")
    parser.add_argument("--rounds", type=int, default=15, help="of the CPU times (default: %(default)s)")
    add_output(parser)
    options = parser.parse_args()
    printed = Printed("decoding", parser, options)
    tune_malloc()
    exact, fast = (load_classifier(Config(model=options.model, decode=decode)) for decode in ("exact", "fast"))
    pictures = list(jpegs(options.photos, options.crops)) if options.photos else []
    if options.photos and not pictures:
        print(one_line(f"{options.photos}: no JPEG in it"), file=sys.stderr)
        return 2
    cpu_ms = {what: cpu_times(exact, fast, quality, options.rounds) for what, quality in _QUALITIES.items()}
    for line in cpu_lines(cpu_ms):
        printed.say(line)
    large = [picture for picture in pictures if min(picture[0]) >= _LEAST_SIDE]
    small = [picture for picture in pictures if min(picture[0]) < _LEAST_SIDE]
    for what, some in (("decoded at a reduced scale", large), ("decoded in full", small)):
        if some:
            printed.say(f"{exact.model.name} ({exact.model.card['variant']}), {len(some)} pictures {what}")
            for line in compare(exact, fast, some):
                printed.say(line)
    printed.write(cpu_ms=cpu_ms)
    return 0


def cpu_times(exact: Classifier, fast: Classifier, quality: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of CPU time from a 12-megapixel file to the model's input, each way in turns; and the ratio."""
    data = enlarge(CERTAIN.read_bytes(), quality)
    ways: dict[str, Callable[[], Any]] = {
        "ours, exact": lambda: exact.prepare(exact.open(data, 1)),
        "ours, fast": lambda: fast.prepare(fast.open(data, 1)),
        "peers": lambda: preprocess(data),
        "peers, draft": lambda: preprocess(data, draft=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            way()
            taken[name].append((time.process_time() - started) * 1000)
    ratios = [quick / slow for quick, slow in zip(taken["ours, fast"], taken["ours, exact"], strict=True)]
    return {**{name: spread(times) for name, times in taken.items()}, "fast of exact": spread(ratios)}


def cpu_lines(cpu_ms: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """A table, and whether the target was met."""
    for what, ways in cpu_ms.items():
        yield f"12 megapixels {what}, to the model's input: CPU ms"
        for name, figure in ways.items():
            yield f"  {name:<14} {shown(figure, 2 if name == 'fast of exact' else 0)}"
    ratio = ways["fast of exact"]["median"]
    yield f"in 1 MB fast takes at most {_AT_MOST} of exact: {'met' if ratio <= _AT_MOST else 'MISSED'}"


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


def compare(exact: Classifier, fast: Classifier, pictures: list[tuple[tuple[int, int], bytes]]) -> Iterator[str]:
    """Lines that say how both ways differ, over all pictures and over those that are no near tie."""
    worst, means, logits, same, clear, same_clear, ratios = [], [], [], [], [], [], []
    for (width, height), data in pictures:
        seconds: dict[str, float] = {}
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
    yield f"pixels, normalised: max |d| {max(worst):.3f}, mean |d| {statistics.mean(means):.4f}"
    yield f"logits: mean |d| {statistics.mean(logits):.3f}"
    yield f"top-1 agrees: {sum(same)} of {len(same)} ({sum(same) / len(same):.1%})"
    yield (
        f"  where the best two classes are {_NEAR_TIE} or more apart: {sum(same_clear)} of {len(clear)} "
        f"({sum(same_clear) / max(1, len(clear)):.1%})"
    )
    yield "decode and preprocess, ms:   MP    MB   exact    fast  ratio"
    for pixels, size, slow, quick in sorted(ratios)[:: max(1, len(ratios) // 12)]:
        yield f"                          {pixels:5.1f} {size:5.1f} {slow:7.1f} {quick:7.1f}  {quick / slow:5.2f}"


if __name__ == "__main__":
    sys.exit(main())
