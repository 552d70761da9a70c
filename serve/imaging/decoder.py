"""The decoder process: reads images from its memory and writes back the model's crop of each.

The fork server forks it, and it is confined before it reads anything. The server checks its replies.
"""

import codecs
import importlib
import logging
import mmap
import os
import time
import warnings
from collections.abc import Callable
from typing import Final, NoReturn

from PIL import Image, JpegImagePlugin

from serve.errors import TooManyFrames, TooManyPixels, UndecodableImage
from serve.imaging.decode import DEEP_MODES, decode, read_header, scale_table
from serve.imaging.limits import check_limits
from serve.imaging.malloc import trim_malloc, tune_malloc
from serve.imaging.messages import GO_ON, MEMORY, REPLIES, REQUEST_BYTES, REQUESTS, Code, Reply, Request, Rules
from serve.imaging.resize import crop_bytes
from serve.imaging.sandbox import SEALED, confine

# Made in advance, because there may be no memory when they are needed.
_LARGE: Final = Reply(Code.LARGE)
_NO_MEMORY: Final = Reply(Code.NO_MEMORY)


def run(parent: int, result_bytes: int, memory: tuple[int, int], seal: bool, takeover: str) -> NoReturn:
    """Confines this process and serves requests until its pipe closes.

    Args:
        parent: the process id of the fork server.
        result_bytes: the length of the memory's part for the result.
        memory: as for `confine`.
        seal: as for `confine`.
        takeover: `module:function` that a test has run on the bytes of each image first; else empty.
    """
    results, own_id, act = mmap.mmap(MEMORY, result_bytes), os.getpid(), _function(takeover)
    state = confine(parent, MEMORY, memory, seal=seal)
    _send(Reply(Code.READY, own_id, state == SEALED))
    while len(message := os.read(REQUESTS, REQUEST_BYTES)) == REQUEST_BYTES:
        request = Request.unpack(message)
        _send(_answer(request, results, act))
    os._exit(0)


def preload(takeover: str) -> None:
    """Imports what decoding needs later, when no file can be opened, and turns off warnings and logs."""
    _function(takeover)
    Image.preinit()
    # Plug-ins import these only when they read a file.
    for module in ("PIL.ImagePalette", "PIL.MpoImagePlugin", "PIL.TiffTags", "copy"):
        importlib.import_module(module)
    for encoding in ("ascii", "latin-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be"):
        codecs.lookup(encoding)
    warnings.simplefilter("ignore")
    logging.disable()
    tune_malloc()
    scale_table()


def _function(name: str) -> Callable[[bytes], object] | None:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function) if module else None


def _send(reply: Reply) -> None:
    os.write(REPLIES, reply.pack())


def _answer(request: Request, results: mmap.mmap, act: Callable[[bytes], object] | None) -> Reply:
    """Decodes one image; if it takes more memory than there is at first, once more with all that there may be."""
    for more_memory in (False, True):
        try:
            reply = _attempt(request, results, act, more_memory)
        except MemoryError:  # what the attempt held is free again once this block is left
            reply = _NO_MEMORY
        if more_memory:
            trim_malloc()
        elif reply.code in (Code.LARGE, Code.NO_MEMORY):
            _send(_LARGE)
            os.read(REQUESTS, len(GO_ON))
            continue
        return reply
    raise AssertionError("the second attempt returns")


def _attempt(request: Request, results: mmap.mmap, act: Callable[[bytes], object] | None, more_memory: bool) -> Reply:
    """Decodes one image, or answers `Code.LARGE` if it should have more memory; raises `MemoryError`."""
    reply, image = Reply(Code.DAMAGED), None
    try:
        os.lseek(MEMORY, len(results), os.SEEK_SET)
        data = os.read(MEMORY, request.length)
        if act:
            act(data)
        image, frames = read_header(data, request.format_name)
        reply = Reply(Code.DONE, *image.size, frames)
        check_limits(image.size, frames, request.rules.spec, request.rules.limits)
        if not more_memory and _pixels_held(image, request.rules) > request.small_pixels:
            return _LARGE
        return _decode(image, request.rules, results, reply)
    except (TooManyPixels, TooManyFrames):
        return reply._replace(code=Code.OVER_LIMIT)
    except UndecodableImage:
        # The libraries of these formats report a lack of memory like damage.
        if not more_memory and request.format_name in ("WebP", "AVIF"):
            return _LARGE
        return reply._replace(code=Code.DEEP if image and image.mode in DEEP_MODES else Code.DAMAGED)


def _decode(image: Image.Image, rules: Rules, results: mmap.mmap, reply: Reply) -> Reply:
    """Writes the model's crop into the memory."""
    rgb = decode(image, rules.apply_orientation, None if rules.exact else rules.spec)
    decoded = time.perf_counter_ns()
    pixels = crop_bytes(rgb, rules.spec, rules.exact, rules.jpeg)
    results[: len(pixels)] = pixels
    return reply._replace(resize_ns=time.perf_counter_ns() - decoded)


def _pixels_held(image: Image.Image, rules: Rules) -> int:
    """Estimates the pixels held at once: a quarter where a JPEG is decoded as it is read, at a reduced scale."""
    pixels = image.width * image.height
    reduced = not rules.exact and isinstance(image, JpegImagePlugin.JpegImageFile)
    if not reduced or image.info.get("progressive") or min(image.size) < 4 * rules.spec.resize:
        return pixels
    return pixels // 4
