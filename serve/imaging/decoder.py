"""The decoder process: reads images from its memory and writes back the model's crop of each.

The fork server forks it, and it is confined before it reads anything. The server checks its replies.
"""

import codecs
import importlib
import logging
import math
import mmap
import os
import time
import warnings
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from PIL import Image, JpegImagePlugin

from serve.errors import TooManyFrames, TooManyPixels, UndecodableImage, UnsupportedVariety
from serve.imaging.decode import decode_upright, read_header, scale_table
from serve.imaging.fork_server import Terms
from serve.imaging.formats import HEIC, webp_size
from serve.imaging.limits import check_limits
from serve.imaging.malloc import tune_malloc
from serve.imaging.messages import (
    GO_ON,
    MEMORY,
    REPLIES,
    REQUEST_BYTES,
    REQUESTS,
    VIEW_BYTES,
    Code,
    Reply,
    Request,
    Rules,
)
from serve.imaging.resize import crop_bytes
from serve.imaging.sandbox import SEALED, confine

# Made in advance, because there may be no memory when they are needed.
_LARGE: Final = Reply(Code.LARGE)
_NO_MEMORY: Final = Reply(Code.NO_MEMORY)


class _Results(NamedTuple):
    """Where the results are written: the model's crop, and the view."""

    crop: memoryview
    view: memoryview


def run(parent: int, terms: Terms, takeover: str) -> NoReturn:
    """Confines this process and serves requests until its pipe closes.

    Args:
        parent: the process id of the fork server.
        terms: what this process gets.
        takeover: `module:function` that a test has run on the bytes of each image first; else empty.
    """
    shared, own_id, act = mmap.mmap(MEMORY, terms.result_bytes + VIEW_BYTES), os.getpid(), _function(takeover)
    results = _Results(memoryview(shared)[: terms.result_bytes], memoryview(shared)[terms.result_bytes :])
    state = confine(parent, MEMORY, (terms.small_memory, terms.all_memory), seal=terms.seal, threads=terms.threads)
    _send(Reply(Code.READY, own_id, state == SEALED))
    while len(message := os.read(REQUESTS, REQUEST_BYTES)) == REQUEST_BYTES:
        request = Request.unpack(message)
        _send(_answer(request, results, act))
    os._exit(0)


def preload(takeover: str) -> None:
    """Imports what decoding needs later, when no file can be opened, and turns off warnings and logs."""
    _function(takeover)
    Image.preinit()  # or it is done when a thumbnail is encoded
    # Plug-ins import these only when they read a file.
    for module in ("PIL.ImagePalette", "PIL.TiffTags", "copy"):
        importlib.import_module(module)
    for encoding in ("ascii", "latin-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be"):
        codecs.lookup(encoding)
    warnings.simplefilter("ignore")
    logging.disable()
    tune_malloc(arenas=1)  # one thread decodes
    scale_table()


def _function(name: str) -> Callable[[bytes], object] | None:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function) if module else None


def _send(reply: Reply) -> None:
    os.write(REPLIES, reply.pack())


def _answer(request: Request, results: _Results, act: Callable[[bytes], object] | None) -> Reply:
    """Decodes one image; if it takes more memory than there is at first, once more with all that there may be."""
    reply = _attempt(request, results, act, more_memory=False)
    if reply.code in (Code.LARGE, Code.NO_MEMORY):
        _send(_LARGE)
        os.read(REQUESTS, len(GO_ON))
        reply = _attempt(request, results, act, more_memory=True)
    return reply


def _attempt(request: Request, results: _Results, act: Callable[[bytes], object] | None, more_memory: bool) -> Reply:
    """Decodes one image, or answers `Code.LARGE` if it should have more memory."""
    reply, image, is_reduced = Reply(Code.DAMAGED), None, False
    try:
        os.lseek(MEMORY, len(results.crop), os.SEEK_SET)
        data = os.read(MEMORY, request.length)
        if act:
            act(data)
        # The decoder of WebP takes all its memory at once, before it tells the size.
        size = webp_size(data) if request.format_name == "WebP" else None
        if size and not more_memory and math.prod(size) > request.small_pixels:
            return _LARGE
        image, frames = read_header(data, request.format_name)
        reply = Reply(Code.DONE, *image.size, frames)
        check_limits(image.size, frames, request.rules.spec, request.rules.limits)
        is_reduced = _is_reduced(image, request.rules)
        if not more_memory and image.width * image.height > request.small_pixels * (4 if is_reduced else 1):
            return _LARGE
        return _decode(image, request, results, reply)
    except MemoryError:
        return _NO_MEMORY
    except (TooManyPixels, TooManyFrames):
        return reply._replace(code=Code.OVER_LIMIT)
    except UndecodableImage as error:
        # A lack of memory is reported like damage by libjpeg, for a file of several scans, which is not decoded as it
        # is read, by libavif, for a header of very many frames, and by libheif.
        if not more_memory and (is_reduced or (image is None and request.format_name in ("AVIF", HEIC))):
            return _LARGE
        if request.format_name == HEIC and isinstance(error.__cause__, RuntimeError):  # libheif had no memory
            return _NO_MEMORY
        return reply._replace(code=Code.DAMAGED)
    except UnsupportedVariety as error:
        return Reply(Code.UNSUPPORTED, variety=error.variety)


def _decode(image: Image.Image, request: Request, results: _Results, reply: Reply) -> Reply:
    """Writes the model's crop into the memory, and the view if one is wanted."""
    rules = request.rules
    upright = decode_upright(image, rules.apply_orientation, None if rules.exact else rules.spec, request.view)
    decoded = time.perf_counter_ns()
    pixels = crop_bytes(upright.rgb, upright.size, rules.spec, rules.exact, rules.jpeg)
    view = upright.view.tobytes() if upright.view else b""
    results.crop[: len(pixels)] = pixels
    results.view[: len(view)] = view
    return reply._replace(resize_ns=time.perf_counter_ns() - decoded, turned=upright.turned)


def _is_reduced(image: Image.Image, rules: Rules) -> bool:
    """Returns whether a JPEG is decoded as it is read, at a reduced scale: a quarter of its pixels or less."""
    if rules.exact or not isinstance(image, JpegImagePlugin.JpegImageFile) or image.info.get("progressive"):
        return False
    return not image.info["lossless"] and min(image.size) >= 4 * rules.spec.resize
