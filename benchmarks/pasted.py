"""Measure whether the network's maps lie where the objects are: photographs pasted small onto others, at known places.

    python benchmarks/pasted.py --photos DIR

The photographs are named `<wnid>_<label>.JPEG`. The middle of one is pasted onto a corner of another, of another class,
and its class is explained. The share of the map's positive values inside the pasted square, against the square's share
of the area, has to be 2 or more on average.
"""

import argparse
import statistics
import sys
from importlib import import_module
from pathlib import Path
from typing import Final

if not __package__:  # started by its path
    import_module("harness.launch").start("runtime")

import numpy as np
from PIL import Image, ImageOps

from benchmarks.reporting.records import PrintedResult, add_output
from serve.config.settings import Config
from serve.imaging.png import encode_png
from serve.model.classifier import Classifier, load_classifier
from serve.model.look import Look
from serve.printable import ArgumentParser

LIMIT: Final = 2.0
_PASTED: Final = 0.4  # of the crop's side


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/pasted.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--count", type=int, default=100, help="pictures to make")
    add_output(parser)
    options = parser.parse_args()
    printed = PrintedResult("pasted", parser, options)
    classifier = load_classifier(Config(model=options.model, decode="exact"))
    try:
        gains = [gain(classifier, *each) for each in pictures(classifier, options)]
    finally:
        classifier.close()
    if not gains:
        print(f"pasted: no photographs named like <wnid>_<label>.JPEG in {options.photos}", file=sys.stderr)
        return 2
    mean, outside = statistics.fmean(gains), sum(each < 1 for each in gains)
    printed.say(
        f"{classifier.model.name}, {classifier.model.card['variant']}: {len(gains)} pictures, positive values inside "
        f"the pasted square {mean:.2f} times as dense as on average (median {statistics.median(gains):.2f}); less "
        f"dense in {outside}"
    )
    printed.write(gains=gains)
    print(f"{mean:.2f} ≥ {LIMIT:g}: {'met' if mean >= LIMIT else 'MISSED'}")
    return int(mean < LIMIT)


def pictures(classifier: Classifier, options: argparse.Namespace) -> list[tuple[Path, Path, int, int]]:
    """Choose, evenly over the folder, an object, its ground, the number of its class and its corner."""
    numbers = {label.imagenet_id: index for index, label in enumerate(classifier.labels)}
    photos = [each for each in sorted(options.photos.glob("*.JPEG")) if each.name.partition("_")[0] in numbers]
    step = max(1, len(photos) // options.count)
    chosen = photos[::step][: options.count]
    return [
        (each, photos[(at * step + len(photos) // 2) % len(photos)], numbers[each.name.partition("_")[0]], at % 4)
        for at, each in enumerate(chosen)
    ]


def gain(classifier: Classifier, photo: Path, ground: Path, index: int, corner: int) -> float:
    """Return how much denser the map's positive values are in the pasted square than in the whole crop.

    Args:
        photo: Of the object.
        ground: What its middle is pasted onto.
        index: The object's class.
        corner: Where: 0 for top left, 1 for top right, 2 for bottom left, 3 for bottom right.
    """
    spec = classifier.preprocessing
    side = round(spec.crop * _PASTED)
    with Image.open(photo) as object_, Image.open(ground) as other:
        picture = ImageOps.fit(other.convert("RGB"), (spec.resize, spec.resize))
        pasted = ImageOps.fit(object_.convert("RGB"), (side, side))
    margin = (spec.resize - spec.crop) // 2
    near, far = margin + spec.crop // 16, margin + spec.crop - spec.crop // 16 - side
    left, top = (near, far)[corner % 2], (near, far)[corner // 2]
    picture.paste(pasted, (left, top))
    explanation = classifier.classify(
        encode_png(np.asarray(picture)), 1, look=Look(explain=True, index=index)
    ).explanation
    if explanation is None:
        raise SystemExit(f"pasted: the model {classifier.model.name} has no feature maps")
    positive = explanation.places.clip(0)
    rows, columns = (
        overlap(places, (start - margin) / spec.crop, side / spec.crop)
        for places, start in zip(positive.shape, (top, left), strict=True)
    )
    share = float(rows @ positive @ columns) / max(float(positive.sum()), 1e-9)
    return share / (side / spec.crop) ** 2


def overlap(places: int, start: float, length: float) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Return which share of each place lies between `start` and `start + length`, in sides of the crop."""
    edges = np.arange(places + 1)
    inside = np.minimum(edges[1:], (start + length) * places) - np.maximum(edges[:-1], start * places)
    return inside.clip(0, 1)


if __name__ == "__main__":
    sys.exit(main())
