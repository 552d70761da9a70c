"""Fine-tunes DenseNet-121 to five classes: trains a new last layer on photographs, and checks a server's answers.

    python examples/fine_tune.py --weights densenet121.pth --photos photographs --output build/own

The photographs are ImageNet's, named `<wnid>_….JPEG`. Their classes are regrouped into bird, dog, vehicle, food and
other. All layers but the last are frozen, so every photograph goes through the network once; two CPUs take a few
minutes for 500. Every second photograph of a class is held out.

Written to the output folder: `own.pth`, the checkpoint; `labels.txt`; `held_out/LABEL/`, links to the photographs that
were held out; `held_out.json`, PyTorch's answers for them.

    python examples/fine_tune.py --output build/own --check http://127.0.0.1:5000

uploads the photographs that were held out and compares the server's accuracy with PyTorch's.
"""

import argparse
import json
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any, Final

if not __package__:  # run by path: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

if __name__ == "__main__":
    from export.environment import require_packages

    require_packages(__file__)

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import DenseNet121_Weights

from export.architectures import ARCHITECTURES
from export.errors import ExportError
from export.weights import build_network, read_weights
from serve.printable import one_line

LABELS: Final = ("bird", "dog", "vehicle", "food", "other")
ROOT: Final = Path(__file__).resolve().parent.parent
# Ranges of ImageNet's class numbers, which are in the order of WordNet's tree: [first, last].
_RANGES: Final = {
    "bird": ((7, 24), (80, 100), (127, 146)),
    "dog": ((151, 268),),
    "food": ((924, 957), (959, 967), (969, 969)),  # 958 is hay, 968 a cup
}
_VEHICLES: Final = (
    "aircraft_carrier airliner airship ambulance amphibian beach_wagon bicycle-built-for-two bobsled bullet_train "
    "cab canoe catamaran container_ship convertible electric_locomotive fire_engine fireboat forklift freight_car "
    "garbage_truck go-kart golfcart gondola half_track horse_cart jeep jinrikisha lifeboat limousine liner minibus "
    "minivan Model_T moped motor_scooter mountain_bike moving_van oxcart passenger_car pickup police_van racer "
    "recreational_vehicle school_bus schooner snowmobile snowplow space_shuttle speedboat sports_car "
    "steam_locomotive streetcar submarine tank tow_truck tractor trailer_truck tricycle trimaran trolleybus "
    "unicycle warplane yawl "
)
_EPOCHS: Final = 200
_LEARNING_RATE: Final = 0.003
_WEIGHT_DECAY: Final = 10.0  # strong: there are four times as many weights a class as photographs


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python examples/fine_tune.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, help="state dict of DenseNet-121, ImageNet's 1000 classes")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photographs named <wnid>_….JPEG")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder for the results")
    parser.add_argument("--check", metavar="URL", help="a server; compare its accuracy with PyTorch's")
    options = parser.parse_args()
    if not options.check and not (options.weights and options.photos):
        parser.error("--weights and --photos are needed, or --check")
    try:
        if options.check:
            return check(options.output, options.check)
        train(options.weights, options.photos, options.output)
    except (ExportError, OSError) as error:
        print(one_line(f"fine_tune: {error}"), file=sys.stderr)
        return 1
    return 0


def train(weights: Path, photos: Path, output: Path) -> None:
    """Trains a new last layer on half of the photographs and writes the results."""
    torch.manual_seed(0)
    groups = _groups()
    paths = sorted(path for path in photos.iterdir() if path.name.split("_")[0] in groups)
    if len(paths) < 4 * len(LABELS):
        sys.exit(
            f"fine_tune: {photos} has {len(paths)} photographs named <wnid>_…; at least {4 * len(LABELS)} are needed"
        )
    labels = torch.tensor([groups[path.name.split("_")[0]] for path in paths])
    network = build_network(ARCHITECTURES["densenet121"], read_weights(weights))
    features = _features(network, paths)
    kept, held_out = _halves(labels)
    head = nn.Linear(features.shape[1], len(LABELS))
    optimizer = torch.optim.AdamW(head.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    counts = labels[kept].bincount(minlength=len(LABELS))
    loss_function = nn.CrossEntropyLoss(weight=len(kept) / counts / len(LABELS))  # most photographs are of "other"
    for _ in range(_EPOCHS):
        loss = loss_function(head(features[kept]), labels[kept])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.classifier = head
    with torch.no_grad():
        answers = head(features[held_out]).argmax(1)
    _write(output, network, [paths[row] for row in held_out], labels[held_out], answers)
    right = int((answers == labels[held_out]).sum())
    print(f"trained on {len(kept)} photographs; PyTorch is right on {right} of {len(held_out)} held out")


def check(output: Path, url: str) -> int:
    """Uploads the photographs that were held out; returns 1 if the server's accuracy is not PyTorch's within one."""
    pytorch = json.loads((output / "held_out.json").read_text(encoding="utf-8"))
    right = 0
    for name, answer in pytorch.items():
        request = urllib.request.Request(f"{url.rstrip('/')}/upload", (output / name).read_bytes())  # noqa: S310
        request.add_header("Content-Type", "image/jpeg")
        try:
            with urllib.request.urlopen(request) as response:  # noqa: S310
                right += json.load(response)["label"] == answer["label"]
        except (OSError, ValueError, KeyError) as error:  # not a server of this project, or none
            raise OSError(f"{url}: {error}; does the server of the exported model run there?") from error
    wanted = sum(answer["pytorch"] == answer["label"] for answer in pytorch.values())
    print(f"the server is right on {right} of {len(pytorch)} held out, PyTorch on {wanted}")
    return 0 if abs(right - wanted) <= 1 else 1


def _groups() -> dict[str, int]:
    """Returns the place in `LABELS` of each WordNet id."""
    classes = json.loads((ROOT / "imagenet_class_index.json").read_text(encoding="utf-8"))
    groups = {}
    for number, (wnid, name) in classes.items():
        ranged = (label for label, ranges in _RANGES.items() if any(low <= int(number) <= high for low, high in ranges))
        label = next(ranged, "vehicle" if f"{name} " in _VEHICLES else "other")
        groups[wnid] = LABELS.index(label)
    return groups


def _features(network: nn.Module, paths: list[Path]) -> Tensor:
    """Returns what the last layer gets of each photograph, `[N, 1024]`."""
    transform = DenseNet121_Weights.IMAGENET1K_V1.transforms()
    rows = []
    with torch.no_grad():
        for done, path in enumerate(paths, start=1):
            with Image.open(path) as image:
                maps = network.get_submodule("features")(transform(image.convert("RGB"))[None])
            rows.append(nn.functional.relu(maps).mean((2, 3)))
            if done % 50 == 0:
                print(f"{done} of {len(paths)} photographs", flush=True)
    return torch.cat(rows)


def _halves(labels: Tensor) -> tuple[list[int], list[int]]:
    """Returns the rows to train on and those to hold out: every second of each class."""
    of_class = [(labels == label).nonzero().flatten().tolist() for label in range(len(LABELS))]
    return sorted(row for rows in of_class for row in rows[::2]), sorted(row for rows in of_class for row in rows[1::2])


def _write(output: Path, network: nn.Module, paths: list[Path], labels: Tensor, answers: Tensor) -> None:
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / "held_out", ignore_errors=True)  # of an earlier run
    torch.save({"state_dict": network.state_dict()}, output / "own.pth")
    (output / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    told: dict[str, Any] = {}
    for path, label, answer in zip(paths, labels.tolist(), answers.tolist(), strict=True):
        link = output / "held_out" / LABELS[label] / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
        told[str(link.relative_to(output))] = {"label": LABELS[label], "pytorch": LABELS[answer]}
    (output / "held_out.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    sys.exit(main())
