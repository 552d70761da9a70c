"""Measure what `SERVE_DECODE=fast` saves, and what it changes in pixels, logits and labels.

    python benchmarks/decoding.py --photos DIR

First the CPU time of decoding and preprocessing 12 megapixels, by our server in both modes and by the peers' servers
with and without `Image.draft`. One image is as a camera saves it, the other is a file of about 1 MB, for which fast may
take at most a fifth of exact. All bytes of a JPEG are read at any scale, so a larger file gains less.

Then the differences, on every JPEG below DIR that is large enough to be decoded at a reduced scale and, with --crops,
on crops of it, cut at full resolution and saved at quality 92, so that there is real detail to lose. Smaller images,
for which only the resizing differs, are counted apart. Enlarged images would prove nothing: they have no detail.
"""

import io
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

if not __package__:  # started by its path
    import_module("harness.launch").start("runtime")

import numpy as np
from PIL import Image

from benchmarks.harness.figures import spread
from benchmarks.harness.prepare import UNAMBIGUOUS, enlarge
from benchmarks.peer_servers.preprocess import preprocess
from benchmarks.reporting.records import PrintedResult, add_output
from benchmarks.reporting.report import format_figure
from serve.config.settings import Config
from serve.imaging.malloc import tune_malloc
from serve.imaging.normalise import normalise
from serve.model.classifier import Classifier, load_classifier
from serve.printable import ArgumentParser, one_line

_MIN_SIDE: Final = 1024  # four times the side that images are resized to
_CROP_QUALITY: Final = 92
# Files of 12 megapixels: description → JPEG quality.
_QUALITIES: Final = {"as a camera would save it": 90, "in a file of about 1 MB": 60}
_MAX_RATIO: Final = 0.2  # of fast to exact, with the smaller file
_NEAR_TIE: Final = 0.1  # difference between the two largest probabilities


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/decoding.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder of large photographs")
    parser.add_argument("--crops", type=int, default=0, metavar="N", help="crops to cut from each")
    parser.add_argument("--model", default="auto", help="as for python -m serve")
    parser.add_argument("--rounds", type=int, default=15, help="of the CPU times (default: %(default)s)")
    add_output(parser)
    options = parser.parse_args()
    printed = PrintedResult("decoding", parser, options)
    tune_malloc(arenas=1)  # as a decoder does
    # In this process, because its CPU time is what is compared.
    exact, fast = (load_classifier(Config(model=options.model, decode=way, sandbox="off")) for way in ("exact", "fast"))
    images = list(jpegs(options.photos, options.crops)) if options.photos else []
    if options.photos and not images:
        print(one_line(f"{options.photos}: contains no JPEG"), file=sys.stderr)
        return 2
    cpu_ms = {what: cpu_times(exact, fast, quality, options.rounds) for what, quality in _QUALITIES.items()}
    for line in cpu_lines(cpu_ms):
        printed.say(line)
    large = [image for image in images if min(image[0]) >= _MIN_SIDE]
    small = [image for image in images if min(image[0]) < _MIN_SIDE]
    for what, some in (("decoded at a reduced scale", large), ("decoded in full", small)):
        if some:
            printed.say(f"{exact.model.name} ({exact.model.card['variant']}), {len(some)} images {what}")
            for line in compare(exact, fast, some):
                printed.say(line)
    printed.write(cpu_ms=cpu_ms)
    return 0


def cpu_times(exact: Classifier, fast: Classifier, quality: int, rounds: int) -> dict[str, dict[str, Any]]:
    """CPU milliseconds from a 12-megapixel file to the model's input for each decoder, in turns, and fast to exact."""
    data = enlarge(UNAMBIGUOUS.read_bytes(), quality)
    decoders: dict[str, Callable[[], Any]] = {
        "ours, exact": lambda: exact.prepare(exact.open(data, 1)),
        "ours, fast": lambda: fast.prepare(fast.open(data, 1)),
        "peers": lambda: preprocess(data),
        "peers, draft": lambda: preprocess(data, draft=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(rounds):
        for name, decode in decoders.items():
            started = time.process_time()
            decode()
            taken[name].append((time.process_time() - started) * 1000)
    ratios = [quick / slow for quick, slow in zip(taken["ours, fast"], taken["ours, exact"], strict=True)]
    return {**{name: spread(times) for name, times in taken.items()}, "fast of exact": spread(ratios)}


def cpu_lines(cpu_ms: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """Lines of a table, and whether the target was met."""
    for what, figures in cpu_ms.items():
        yield f"12 megapixels {what}, to the model's input: CPU ms"
        for name, figure in figures.items():
            yield f"  {name:<14} {format_figure(figure, 2 if name == 'fast of exact' else 0)}"
    ratio = figures["fast of exact"]["median"]
    yield f"in 1 MB fast takes at most {_MAX_RATIO} of exact: {'met' if ratio <= _MAX_RATIO else 'MISSED'}"


def jpegs(folder: Path, crops: int) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Size and bytes of each image, and of crops cut from it at random places (with a fixed seed)."""
    draw = random.Random(1)
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink() or not path.read_bytes().startswith(b"\xff\xd8\xff"):
            continue
        with Image.open(path) as image:
            width, height = image.size
            yield (width, height), path.read_bytes()
            for _ in range(crops if min(width, height) >= _MIN_SIDE else 0):
                side = draw.randint(_MIN_SIDE, min(width, height))
                left, top = draw.randint(0, width - side), draw.randint(0, height - side)
                buffer = io.BytesIO()
                cut = image.convert("RGB").crop((left, top, left + side, top + side))
                cut.save(buffer, "JPEG", quality=_CROP_QUALITY)
                yield (side, side), buffer.getvalue()


def compare(exact: Classifier, fast: Classifier, images: list[tuple[tuple[int, int], bytes]]) -> Iterator[str]:
    """Lines about the differences between both modes, over all images and over those without a near tie."""
    worst, means, logits, same, clear, same_clear, ratios = [], [], [], [], [], [], []
    for (width, height), data in images:
        seconds: dict[str, float] = {}
        prepared = {}
        for name, classifier in (("exact", exact), ("fast", fast), ("exact", exact), ("fast", fast)):
            started = time.perf_counter()
            prepared[name] = classifier.prepare(classifier.open(data, 1))
            seconds[name] = min(seconds.get(name, 1e9), time.perf_counter() - started)
        spec = exact.preprocessing
        difference = np.abs(normalise(prepared["exact"].pixels, spec) - normalise(prepared["fast"].pixels, spec))
        worst.append(float(difference.max()))
        means.append(float(difference.mean()))
        first, second = (exact.model.logits(prepared[name].batch)[0] for name in ("exact", "fast"))
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
