"""Finds photographs and reads them as the server does."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from export.errors import PhotographError
from export.files import ROOT
from serve.errors import RequestError
from serve.imaging.decode import decode, open_image
from serve.imaging.limits import ImageLimits
from serve.imaging.normalise import FloatArray, to_input
from serve.imaging.preprocess import Preprocessing

PROJECT_PHOTOGRAPHS: Final = ROOT / "tests" / "data" / "photos"
_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
_NO_LIMIT: Final = ImageLimits(2**40, max_frames=2**40)


def find_photographs(places: Iterable[Path]) -> list[Path]:
    """Returns the named files and the images in the named folders, sorted within each folder.

    Raises:
        PhotographError: a place does not exist, or a folder has no images.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.iterdir() if path.suffix.lower() in _SUFFIXES)
            if not inside:
                raise PhotographError(f"photographs {place}: no images in this folder")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise PhotographError(f"photographs {place}: no such file or folder")
    return found


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
