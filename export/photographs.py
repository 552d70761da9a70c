"""Finds photographs and reads them as the server does."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from export.errors import PhotographError
from export.files import ROOT
from export.onnx_graph import Array
from serve.errors import RequestError
from serve.imaging.decode import decode, open_image
from serve.imaging.limits import ImageLimits
from serve.imaging.normalise import FloatArray, to_input
from serve.imaging.preprocess import Preprocessing

PROJECT_PHOTOGRAPHS: Final = ROOT / "tests" / "data" / "photos"
_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
MAX_PHOTOGRAPHS: Final = 1000  # more would take an hour and tell nothing new
_NO_LIMIT: Final = ImageLimits(2**40, max_frames=2**40)


@dataclass(frozen=True)
class Photographs:
    """Photographs with the fp32 model's logits `[N, classes]` and the classes that they show, None where unknown."""

    paths: Sequence[Path]
    logits: Array
    labels: Sequence[int | None]

    def rows_of(self, paths: Iterable[Path]) -> list[int]:
        """Returns the places of some of the photographs."""
        wanted = set(paths)
        return [row for row, path in enumerate(self.paths) if path in wanted]


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Chooses `count` of the photographs, or all if there are fewer, spread evenly over them."""
    count = min(count, len(paths))
    return [paths[position * len(paths) // count] for position in range(count)]


def find_photographs(places: Iterable[Path]) -> list[Path]:
    """Returns the named files and the images in the named folders and in their folders, sorted within each folder.

    Raises:
        PhotographError: a place does not exist, or a folder has no images.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = [path for folder in (place, *_folders_in(place)) for path in _images_in(folder)]
            if not inside:
                raise PhotographError(
                    f"photographs {place}: no images in this folder or in the folders in it; images are files "
                    f"ending in {', '.join(sorted(_SUFFIXES))}"
                )
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise PhotographError(f"photographs {place}: no such file or folder")
    return found


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _images_in(folder: Path) -> list[Path]:
    """Returns a folder's images; names that begin with a dot are those of systems, not photographs."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.name[0] != ".")


def read_photograph(path: Path, spec: Preprocessing) -> FloatArray:
    """Returns a photograph as the server feeds it to the model, FP32 `[1, 3, S, S]`.

    Raises:
        PhotographError: the file cannot be read or decoded.
    """
    try:
        return to_input(decode(open_image(path.read_bytes(), spec, _NO_LIMIT)), spec)
    except (OSError, RequestError) as error:
        raise PhotographError(f"photograph {path}: {error}") from error


def read_photographs(paths: Iterable[Path], spec: Preprocessing) -> Iterator[FloatArray]:
    """Yields each photograph as `read_photograph` returns it."""
    return (read_photograph(path, spec) for path in paths)
