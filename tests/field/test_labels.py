"""The cat is an Egyptian cat in every variety that is decoded, as the model in the repository sees it."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.api.app import create_app
from serve.config.settings import ROOT, Config
from serve.model.classifier import load_classifier
from tests.field import bitmaps, tiffs
from tests.field.tiffs import BLACK_IS_ZERO, CMYK, LZW, PALETTE, RGB, WHITE_IS_ZERO, Layout
from tests.serve.conftest import PHOTOS

MODEL: Path = ROOT / "models" / "efficientnet_lite0.onnx"
CAT = Image.open(PHOTOS / "cat.jpg").convert("RGB")
COLOURS = np.asarray(CAT).astype(int)
GREY = np.asarray(CAT.convert("L")).astype(int)[..., None]
INKS = np.concatenate([255 - COLOURS, np.zeros_like(GREY)], -1)


@pytest.fixture(scope="module")
def embedded() -> Iterator[TestClient]:
    config = Config(model=str(MODEL), allowed_hosts=("*",))
    classifier = load_classifier(config)
    with TestClient(create_app(config, classifier)) as client:
        yield client
    classifier.close()


def tiff(levels: np.ndarray, layout: Layout) -> bytes:
    return tiffs.write(np.rint(levels * (2**layout.bits - 1) / 255).astype(np.int64), layout)


def with_palette_of_8_bits() -> bytes:
    image = CAT.quantize(256)
    colours = np.array(image.getpalette()).reshape(-1, 3)
    palette = np.pad(colours, [(0, 256 - len(colours)), (0, 0)]).T.ravel().tolist()
    return tiffs.write(np.asarray(image)[..., None], Layout(8, PALETTE, palette=palette))


def with_broken_exif() -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x010F] = "maker"
    CAT.save(buffer, "AVIF", exif=exif.tobytes(), speed=10)
    data = buffer.getvalue()
    start = data.rindex(b"*", 0, data.index(b"maker")) - 3
    return data[:start] + b"XXXX" + data[start + 4 :]


KINDS: dict[str, Callable[[], bytes]] = {
    "the photograph": lambda: (PHOTOS / "cat.jpg").read_bytes(),
    "16-bit RGB in planes": lambda: tiff(COLOURS, Layout(16, RGB, planar=2)),
    "16-bit RGB in planes, tiles and big-endian": lambda: tiff(COLOURS, Layout(16, RGB, ">", planar=2, tile=(64, 64))),
    "16-bit CMYK in planes": lambda: tiff(INKS, Layout(16, CMYK, planar=2)),
    "12-bit grey": lambda: tiff(GREY, Layout(12, BLACK_IS_ZERO)),
    "12-bit grey, big-endian and LZW": lambda: tiff(GREY, Layout(12, BLACK_IS_ZERO, ">", compression=LZW)),
    "12-bit grey, white is zero": lambda: tiff(255 - GREY, Layout(12, WHITE_IS_ZERO)),
    "16-bit grey, white is zero": lambda: tiff(255 - GREY, Layout(16, WHITE_IS_ZERO)),
    "16-bit grey, white is zero, big-endian": lambda: tiff(255 - GREY, Layout(16, WHITE_IS_ZERO, ">")),
    "8-bit grey, white is zero, a plane of its own": lambda: tiff(255 - GREY, Layout(8, WHITE_IS_ZERO, planar=2)),
    "bits in the other order, in planes": lambda: tiff(COLOURS, Layout(8, RGB, planar=2, fill_order=2)),
    "a palette of 8-bit colours": with_palette_of_8_bits,
    "a BMP of 16 greys": lambda: bitmaps.write(GREY[..., 0] >> 4, 4, palette=[(16 * i,) * 3 for i in range(16)]),
    "an AVIF of broken EXIF": with_broken_exif,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_cat_is_an_egyptian_cat_in_every_variety(kind: str, embedded: TestClient) -> None:
    answer = embedded.post("/upload", files={"file": KINDS[kind]()})
    assert (answer.status_code, answer.json().get("label")) == (200, "Egyptian_cat"), answer.json()
