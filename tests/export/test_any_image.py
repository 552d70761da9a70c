"""Images of any mode, size, format and orientation give torchvision's pixels, or an error that says why not."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms._presets import ImageClassification

from export.parity import reference_image
from serve.errors import RequestError
from serve.imaging.decode import decode, open_image
from serve.imaging.limits import ImageLimits
from serve.imaging.normalise import to_input
from serve.imaging.preprocess import Preprocessing
from serve.problems import RULES

SPEC = Preprocessing(32, "bilinear", 28, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PRESET = ImageClassification(resize_size=32, crop_size=28)
LIMITS = ImageLimits(100_000)
# The modes that Pillow can write in each format.
MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "AVIF": ("RGB", "RGBA"),
}
ORIENTATION = 0x0112


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """An encoded image of random pixels."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(noise.integers(0, 65536, (height, width)).astype(dtype))
    else:
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
    exif = Image.Exif()
    if orientation := draw(st.integers(0, 9)):
        exif[ORIENTATION] = orientation
    options = {} if kind in ("GIF", "BMP") else {"exif": exif.tobytes()}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "image"


@given(data=files())
@settings(max_examples=400, deadline=None, derandomize=True, print_blob=False)
def test_any_image_gets_torchvisions_pixels_or_a_documented_problem(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    try:
        got = to_input(decode(open_image(data, SPEC, LIMITS)), SPEC)
    except RequestError as error:
        assert RULES[type(error)].status in (413, 422)
        with Image.open(file) as image:
            too_large = 32 * 32 * max(image.size) / min(image.size) > LIMITS.max_pixels
            assert too_large or image.mode in ("I", "F")
        return
    wanted = PRESET(reference_image(file))[None].numpy()
    assert got.shape == wanted.shape
    assert float(np.abs(got - wanted).max()) <= 1e-6


@given(data=files(), cut=st.floats(0, 1), noise=st.binary(max_size=40))
@settings(max_examples=400, deadline=None, derandomize=True, print_blob=False)
def test_any_broken_image_is_an_image_or_a_problem(data: bytes, cut: float, noise: bytes) -> None:
    at = int(len(data) * cut)
    try:
        batch = to_input(decode(open_image(data[:at] + noise + data[at + len(noise) :], SPEC, LIMITS)), SPEC)
    except RequestError as error:
        assert RULES[type(error)].status in (413, 415, 422)
        return
    assert batch.shape == (1, 3, 28, 28)
