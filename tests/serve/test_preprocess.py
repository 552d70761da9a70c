"""The model's input equals torchvision's bit for bit, in every mode, shape and accepted format."""

import io
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.errors import ModelError, TooManyPixels, UndecodableImage, UnsupportedFormat
from serve.imaging.decode import decode, open_image
from serve.imaging.formats import ACCEPTED_FORMATS, BUILT_IN_FORMATS, HEIC, sniff_format
from serve.imaging.limits import ImageLimits
from serve.imaging.normalise import as_pixels, normalise, to_input, to_pixels
from serve.imaging.preprocess import Preprocessing, resized_size
from tests.references import ARRAYS, DIGESTS, FULL, PICTURES, SMALL, digest, pictures
from tests.server_process import ROOT

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LIMIT = ImageLimits(50_000_000)


def spec(sizes: tuple[int, int]) -> Preprocessing:
    return Preprocessing(sizes[0], "bilinear", sizes[1], MEAN, STD)


def prepared(data: bytes, sizes: tuple[int, int] = SMALL, apply_orientation: bool = True) -> np.ndarray:
    return to_input(decode(open_image(data, spec(sizes), LIMIT), apply_orientation), spec(sizes))


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def test_pixels_are_restored_from_what_they_were_normalised_to() -> None:
    for mean, std in ((MEAN, STD), ((127 / 255,) * 3, (128 / 255,) * 3)):
        exact = Preprocessing(256, "bilinear", 16, mean, std)
        every = np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3)
        for pixels in (every, every[::-1]):
            assert (to_pixels(normalise(pixels.tobytes(), exact), exact)[0] == pixels).all()
            assert (as_pixels(pixels.tobytes(), exact)[0] == pixels).all()


@pytest.mark.parametrize("path", pictures(), ids=lambda path: path.name)
def test_every_image_becomes_the_same_input_as_with_torchvision(path: Path) -> None:
    data = path.read_bytes()
    small = prepared(data, SMALL)
    assert small.dtype == np.float32
    assert small.shape == (1, 3, 28, 28)
    np.testing.assert_array_equal(small[0], np.load(ARRAYS)[path.name])
    assert digest(prepared(data, FULL)[0]) == json.loads(DIGESTS.read_text())[path.name]


def test_the_stored_images_cover_every_accepted_format() -> None:
    assert {sniff_format(path.read_bytes()) for path in pictures()} == set(BUILT_IN_FORMATS)


def test_every_exif_orientation_shows_the_same_upright_shape() -> None:
    for orientation, upright_size in zip(range(1, 9), [(97, 61)] * 4 + [(61, 97)] * 4, strict=True):
        data = (PICTURES / f"orientation_{orientation}.jpg").read_bytes()
        assert decode(open_image(data, spec(SMALL), LIMIT)).size == upright_size


def test_exif_orientation_can_be_turned_off() -> None:
    turned = (PICTURES / "orientation_6.jpg").read_bytes()
    upright = (PICTURES / "orientation_1.jpg").read_bytes()
    assert not np.array_equal(prepared(turned), prepared(upright))
    np.testing.assert_array_equal(prepared(turned, apply_orientation=False), prepared(upright))


def test_broken_exif_leaves_an_image_upright() -> None:
    rgb = Image.new("RGB", (40, 30), (200, 100, 50))
    broken = encoded(rgb, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    np.testing.assert_array_equal(prepared(broken), prepared(encoded(rgb, "JPEG")))


def test_16_bit_grey_is_scaled_and_not_clipped_to_white() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = decode(open_image(encoded(Image.fromarray(ramp), "PNG"), spec(SMALL), LIMIT))
    levels = np.asarray(image)[..., 0]
    np.testing.assert_array_equal(levels, np.rint(ramp / 257.0).astype(np.uint8))
    assert levels.min() == 0
    assert levels.max() == 255


def test_16_bit_grey_is_turned_upright_as_any_other() -> None:
    """A regression: scaling lost the EXIF."""
    ramp = Image.fromarray(np.linspace(0, 65535, 6 * 8).astype(np.uint16).reshape(6, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(open_image(encoded(ramp, "PNG", exif=exif.tobytes()), spec(SMALL), LIMIT))
    upright = decode(open_image(encoded(ramp, "PNG"), spec(SMALL), LIMIT)).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(upright))


def test_16_bit_big_endian_tiff_is_scaled_too() -> None:
    ramp = np.linspace(0, 65535, 48).astype(">u2").reshape(6, 8)
    big_endian = Image.frombytes("I;16B", (8, 6), ramp.tobytes())
    image = decode(open_image(encoded(big_endian, "TIFF"), spec(SMALL), LIMIT))
    np.testing.assert_array_equal(np.asarray(image)[..., 0], np.rint(ramp / 257.0).astype(np.uint8))


@pytest.mark.parametrize("path", pictures(), ids=lambda path: path.name)
def test_half_a_file_is_undecodable_and_never_a_crash(path: Path) -> None:
    data = path.read_bytes()
    if path.name == "one_pixel.png":  # its second half is checksums and the end mark; cut into the pixels
        data = data[:50] + b"\0" * 19
    with pytest.raises(UndecodableImage, match=r"^The \w+ image cannot be decoded: it is truncated or corrupt\.$"):
        prepared(data[: len(data) // 2] if len(data) > 69 else data)


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"BMore plain text than a bitmap",
        b"%PDF-1.7",
        b"P6 2 2 255 " + b"\0" * 12,
        b"\0\0\1\0" + b"\0" * 60,
        b"RIFF",
    ],
    ids=["text", "text like BMP", "PDF", "PPM", "ICO", "RIFF"],
)
def test_other_content_is_an_unsupported_format(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match=rf"those are {', '.join(ACCEPTED_FORMATS)}\.$"):
        open_image(data, spec(SMALL), LIMIT)


def test_the_accepted_formats_are_those_of_pillow_and_heic_where_its_extra_is_installed() -> None:
    assert BUILT_IN_FORMATS == ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF")
    assert (*BUILT_IN_FORMATS, *[HEIC] * (find_spec("pi_heif") is not None)) == ACCEPTED_FORMATS


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0heic", b"hevc\0\0\0\0", b"heix\0\0\0\0miaf"])
def test_without_its_extra_heic_is_refused_and_the_message_says_how_to_get_it(
    brands: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.imaging.limits.ACCEPTED_FORMATS", BUILT_IN_FORMATS)
    message = (
        "HEIC needs the extra 'heic', which this server lacks; its operator can add it with pip install "
        "'densenet-server[heic]' or make serve HEIC=1, or to the container image with --build-arg HEIC=1. The accepted "
        "formats are JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF."
    )
    with pytest.raises(UnsupportedFormat, match=f"^{re.escape(message)}$"):
        open_image(b"\0\0\0\x18ftyp" + brands + bytes(40), spec(SMALL), LIMIT)


def test_an_avif_is_none_whatever_general_brands_it_has() -> None:
    for brands in (b"avif\0\0\0\0mif1miaf", b"mif1\0\0\0\0avifmiaf", b"msf1\0\0\0\0avis"):
        assert sniff_format(b"\0\0\0\x18ftyp" + brands + bytes(40)) == "AVIF"


def test_a_format_is_known_by_its_content_alone() -> None:
    assert sniff_format((PICTURES / "rgb.webp").read_bytes()) == "WebP"
    assert sniff_format(b"\x89PNG\r\n\x1a\n") == "PNG"
    assert sniff_format(b"") is None


@pytest.mark.parametrize("document", ["docs/api.md", "SECURITY.md"])
def test_the_documents_list_the_accepted_formats(document: str) -> None:
    words = " ".join((ROOT / document).read_text(encoding="utf-8").split())
    assert f"{', '.join(BUILT_IN_FORMATS[:-1])} and {BUILT_IN_FORMATS[-1]} are " in words
    assert "HEIC is accepted where its extra is installed" in words


def test_pixels_are_limited_by_the_header_alone() -> None:
    huge = bytearray((PICTURES / "rgb.png").read_bytes())
    huge[16:24] = (50_000).to_bytes(4, "big") * 2
    import zlib

    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    with pytest.raises(TooManyPixels, match="50000 × 50000 pixels; the limit is 50000000 pixels"):
        open_image(bytes(huge), spec(FULL), LIMIT)


def test_an_image_at_the_limit_passes_and_one_above_does_not() -> None:
    data = (PICTURES / "rgb.png").read_bytes()
    assert open_image(data, spec(SMALL), ImageLimits(97 * 61)).size == (97, 61)
    with pytest.raises(TooManyPixels, match=f"the limit is {97 * 61 - 1} pixels"):
        open_image(data, spec(SMALL), ImageLimits(97 * 61 - 1))


def test_a_very_narrow_image_is_refused_before_resizing_makes_it_huge() -> None:
    thread = encoded(Image.new("L", (4000, 1)), "PNG")
    with pytest.raises(TooManyPixels, match="1024000 × 256 once its shorter side is 256"):
        open_image(thread, spec(FULL), LIMIT)


def test_resizing_truncates_the_longer_side() -> None:
    assert resized_size((500, 375), 256) == (341, 256)
    assert resized_size((375, 500), 256) == (256, 341)
    assert resized_size((1, 1), 256) == (256, 256)


def test_preprocessing_survives_the_model_card() -> None:
    card = json.loads(json.dumps(spec(FULL).to_card()))
    assert Preprocessing.from_card(card) == spec(FULL)


@pytest.mark.parametrize(("crop", "resize"), [(1, 1), (224, 224), (1, 4096), (4096, 4096)])
def test_a_crop_goes_from_one_pixel_to_all_that_was_resized(crop: int, resize: int) -> None:
    read = Preprocessing.from_card({**spec(FULL).to_card(), "crop": crop, "resize": resize})
    assert (read.crop, read.resize) == (crop, resize)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mean": None}, "mean=None"),
        ({"std": [1, 0, 1]}, "std="),
        ({"crop": 300}, "crop=300"),
        ({"resize": 10**9}, "resize=1000000000"),
        ({"resize": 4097}, "resize=4097 .* 4096"),
        ({"crop": 257}, "crop=257"),
        ({"crop": 0}, "crop=0"),
        ({"mean": [0.5, "0.5", 0.5]}, "mean="),
        ({"interpolation": "cubist"}, "interpolation='cubist'"),
        ({"interpolation": ["bilinear"]}, r"interpolation=\['bilinear'\]"),
    ],
)
def test_an_invalid_card_is_refused_and_the_entry_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        Preprocessing.from_card({**spec(FULL).to_card(), **change})


@pytest.mark.parametrize("entry", ["resize", "interpolation", "crop", "mean", "std"])
def test_a_card_that_lacks_an_entry_is_refused_by_its_name(entry: str) -> None:
    card = spec(FULL).to_card()
    del card[entry]
    with pytest.raises(ModelError, match=f"lacks '{entry}'"):
        Preprocessing.from_card(card)
