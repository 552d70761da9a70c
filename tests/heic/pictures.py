"""HEIC images of one photograph that differ in how it is stored.

    python -m tests.heic.pictures     writes them again (needs Pillow and pillow-heif 1.4.0, which can encode HEVC)

Each shows `photograph()` once it is upright, except for two that are large and plain. No lock file has pillow-heif,
whose encoder, x265, is under the GPL.
"""

import ctypes
from pathlib import Path
from typing import Any, Final

from PIL import ExifTags, Image

from tests.references import DATA

FOLDER: Final = DATA / "heic"
_QUALITY: Final = 70
_ENCODER: Final = {"x265:info": "0"}  # without x265's own description of itself
# From EXIF orientation to the operation that undoes it.
_UNDO: Final = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# From libheif's heif_image.h and heif_context.h.
_HEVC, _RGB, _INTERLEAVED_RGB, _INTERLEAVED = 1, 1, 10, 10


def photograph() -> Image.Image:
    """Returns the upright photograph, 128 × 64 pixels."""
    with Image.open(DATA / "photos" / "cat.jpg") as file:
        return file.convert("RGB").crop((100, 30, 292, 126)).resize((128, 64))


def heic_pictures() -> list[Path]:
    """Returns the paths of the stored images that show the photograph, sorted by name."""
    return sorted(path for path in FOLDER.iterdir() if not path.name.startswith("plain"))


def draw_pictures() -> None:
    """Writes the images."""
    rgb = photograph()
    grey = rgb.convert("L")
    rgba = rgb.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(rgb.size).point(lambda level: 64 + level // 2))
    FOLDER.mkdir(exist_ok=True)
    _save("rgb.heic", [rgb])
    _save("chroma_444.heic", [rgb], chroma=444)
    _save("grey.heic", [grey])
    _save("odd_size.heic", [rgb.crop((0, 0, 127, 63))])
    _save("rgba.heic", [rgba])
    _save("premultiplied.heic", [rgba.convert("RGBa")])
    _save("rgb_10_bits.heic", [rgb], bits=10)
    _save("grey_10_bits.heic", [grey], bits=10)
    _save("rgba_12_bits.heic", [rgba], bits=12)
    _save("second_of_two.heic", [rgb.transpose(Image.Transpose.ROTATE_180), rgb])
    (FOLDER / "general_brand.heif").write_bytes((FOLDER / "rgb.heic").read_bytes().replace(b"heic", b"mif1", 1))
    for orientation in _UNDO:
        _save(f"irot_and_exif_{orientation}.heic", [rgb], container=orientation, exif=orientation)
    _save("irot_only_6.heic", [rgb], container=6)
    _save("exif_only_6.heic", [rgb], exif=6)
    _save_grid("grid.heic", rgb)
    for megapixels, size in ((4, (2000, 2000)), (50, (8160, 6120))):
        _save(f"plain_{megapixels}_megapixels.heic", [Image.new("RGB", size, "navy")], preset="ultrafast")


def _save(
    name: str,
    images: list[Image.Image],
    *,
    bits: int = 8,
    container: int = 1,
    exif: int = 0,
    chroma: int = 420,
    preset: str = "medium",
) -> None:
    """Writes a file whose primary image is the last one.

    Args:
        bits: per channel.
        container: the orientation that its `irot` and `imir` undo; the image is stored turned accordingly.
        exif: the orientation that its EXIF names, 0 for none.
        chroma: how colour is sampled.
        preset: of x265.
    """
    from pillow_heif.constants import HeifCompressionFormat
    from pillow_heif.misc import CtxEncode

    writer = CtxEncode(
        HeifCompressionFormat.HEVC, quality=_QUALITY, chroma=chroma, enc_params={"preset": preset, **_ENCODER}
    )
    options: dict[str, Any] = {"image_orientation": container}
    if exif:
        tags = Image.Exif()
        tags[ExifTags.Base.Orientation] = exif
        options["exif"] = tags.tobytes()
    undo = _UNDO[container]
    for image in images:
        stored = image.transpose(undo) if undo is not None else image
        data = stored.tobytes()
        if bits > 8:
            data = b"".join(bytes((level, level)) for level in data)  # 16 bits, which the writer reduces
        mode = stored.mode + (";16" if bits > 8 else "")
        writer.add_image(stored.size, mode, data, bit_depth=bits, primary=image is images[-1], **options)
    writer.save(FOLDER / name)


def _save_grid(name: str, rgb: Image.Image) -> None:
    """Writes a file of two tiles side by side, as phones write of dozens; pillow-heif cannot, but its libheif can."""
    import pillow_heif

    (path,) = Path(pillow_heif.__file__).parent.with_name("pillow_heif.libs").glob("libheif*")
    library = ctypes.CDLL(str(path))
    library.heif_context_alloc.restype = library.heif_image_get_plane.restype = ctypes.c_void_p
    for function in ("heif_image_create", "heif_context_encode_grid", "heif_context_write_to_file"):
        getattr(library, function).restype = _Error
    context = ctypes.c_void_p(library.heif_context_alloc())
    encoder = ctypes.c_void_p()
    library.heif_context_get_encoder_for_format(context, _HEVC, ctypes.byref(encoder))
    library.heif_encoder_set_lossy_quality(encoder, _QUALITY)
    for parameter, value in _ENCODER.items():
        library.heif_encoder_set_parameter(encoder, parameter.encode(), value.encode())
    tiles = (ctypes.c_void_p * 2)()
    side = rgb.height
    for number in range(2):
        image, stride = ctypes.c_void_p(), ctypes.c_int()
        library.heif_image_create(side, side, _RGB, _INTERLEAVED_RGB, ctypes.byref(image)).check()
        library.heif_image_add_plane(image, _INTERLEAVED, side, side, 8)
        plane = library.heif_image_get_plane(image, _INTERLEAVED, ctypes.byref(stride))
        tile = rgb.crop((side * number, 0, side * (number + 1), side)).tobytes()
        for row in range(side):
            ctypes.memmove(plane + row * stride.value, tile[row * side * 3 : (row + 1) * side * 3], side * 3)
        tiles[number] = image.value
    handle = ctypes.c_void_p()
    library.heif_context_encode_grid(context, tiles, 2, 1, encoder, None, ctypes.byref(handle)).check()
    library.heif_context_set_primary_image(context, handle)
    library.heif_context_write_to_file(context, str(FOLDER / name).encode()).check()


class _Error(ctypes.Structure):
    """struct heif_error."""

    _fields_ = (("code", ctypes.c_int), ("subcode", ctypes.c_int), ("message", ctypes.c_char_p))

    def check(self) -> None:
        if self.code:
            raise RuntimeError(self.message.decode())


if __name__ == "__main__":
    draw_pictures()
