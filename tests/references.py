"""torchvision's preprocessing of the images in tests/data/pictures, stored so that the server's tests need no torch.

    python -m tests.references     writes images and references again (in the export environment)

Each image goes through torchvision's `ImageClassification` preset twice: resized to 32 and cropped to 28 pixels, of
which the array is stored, and with DenseNet-121's 256 and 224 pixels, of which the sha256 is stored. The server differs
from torchvision in EXIF orientation and 16-bit grey; `export.parity.reference_image` applies both while loading.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serve.imaging.normalise import FloatArray

DATA = Path(__file__).parent / "data"
PICTURES = DATA / "pictures"
ARRAYS = DATA / "references.npz"
DIGESTS = DATA / "references.json"
SMALL = (32, 28)
FULL = (256, 224)
_ORIENTATION = 0x0112


def digest(array: FloatArray) -> str:
    """Returns the sha256 of a float32 array's bytes, little-endian and in C order."""
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


def pictures() -> list[Path]:
    """Returns the paths of the stored images, sorted by name."""
    return sorted(PICTURES.iterdir())


def torchvision_references() -> tuple[dict[str, FloatArray], dict[str, str]]:
    """Computes the references: name → FP32 `[3, 28, 28]`, and name → sha256 of FP32 `[3, 224, 224]`."""
    from torchvision.transforms._presets import ImageClassification

    from export.parity import reference_image

    small, full = (ImageClassification(resize_size=resize, crop_size=crop) for resize, crop in (SMALL, FULL))
    images = {path.name: reference_image(path) for path in pictures()}
    return (
        {name: small(image).numpy() for name, image in images.items()},
        {name: digest(full(image).numpy()) for name, image in images.items()},
    )


def draw_pictures() -> None:
    """Writes one small file for each mode, shape and format that the server accepts."""
    PICTURES.mkdir(exist_ok=True)
    photograph = Image.open(DATA / "photos" / "cat.jpg").convert("RGB")
    rgb = photograph.crop((100, 30, 294, 150)).resize((97, 61))
    grey = rgb.convert("L")
    alpha = Image.linear_gradient("L").resize(rgb.size)
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    grey_alpha = grey.copy()
    grey_alpha.putalpha(alpha)
    palette = rgb.quantize(64)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257 + np.arange(97, dtype=np.uint16))
    second = rgb.transpose(Image.Transpose.ROTATE_180)
    for name, image, options in (
        ("rgb.jpg", rgb, {"quality": 90}),
        ("progressive.jpg", rgb, {"quality": 90, "progressive": True}),
        ("grey.jpg", grey, {"quality": 90}),
        ("cmyk.jpg", rgb.convert("CMYK"), {"quality": 90}),
        ("rgb.png", rgb, {}),
        ("rgba.png", rgba, {}),
        ("grey.png", grey, {}),
        ("grey_alpha.png", grey_alpha, {}),
        ("palette.png", palette, {}),
        ("palette_transparent.png", palette, {"transparency": 3}),
        ("bilevel.png", grey.convert("1"), {}),
        ("grey16.png", deep, {}),
        ("tall.png", rgb.resize((7, 83)), {}),
        ("wide.png", rgb.resize((91, 5)), {}),
        ("one_pixel.png", rgb.resize((1, 1)), {}),
        ("as_large_as_the_crop.png", rgb.resize((32, 32)), {}),
        ("animated.png", rgb, {"save_all": True, "append_images": [second]}),
        ("rgb.webp", rgb, {"quality": 90}),
        ("rgba.webp", rgba, {"lossless": True}),
        ("animated.webp", rgb, {"save_all": True, "append_images": [second], "lossless": True}),
        ("palette.gif", palette, {}),
        ("animated.gif", rgb, {"save_all": True, "append_images": [second]}),
        ("rgb.bmp", rgb, {}),
        ("palette.bmp", palette, {}),
        ("rgb.tiff", rgb, {"compression": "tiff_lzw"}),
        ("cmyk.tiff", rgb.convert("CMYK"), {"compression": "tiff_adobe_deflate"}),
        ("grey16.tiff", deep, {"compression": "tiff_adobe_deflate"}),
        ("rgb.avif", rgb, {"quality": 90}),
        ("rgba.avif", rgba, {"quality": 90}),
    ):
        image.save(PICTURES / name, **options)
    for orientation in range(1, 9):
        _save_turned(rgb, f"orientation_{orientation}.jpg", orientation, quality=90)
    _save_turned(rgb, "orientation_6.png", 6)
    _save_turned(rgb, "orientation_6.webp", 6, lossless=True)
    _save_turned(rgb, "orientation_6.tiff", 6, compression="tiff_lzw")
    _save_turned(rgb, "orientation_6.avif", 6, quality=90)


def _save_turned(image: Image.Image, name: str, orientation: int, **options: Any) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    image.save(PICTURES / name, exif=exif.tobytes(), **options)


if __name__ == "__main__":
    draw_pictures()
    arrays, digests = torchvision_references()
    np.savez_compressed(ARRAYS, **arrays)  # type: ignore[arg-type]
    DIGESTS.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
