"""Decodes images in confined processes: one image at a time each, bounded in time and memory from outside."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from serve import errors
from serve.errors import DecoderDied, NotReady, QueueFull, RequestError, StartError
from serve.imaging.decoder_process import DecoderProcess
from serve.imaging.decoders import Crop, OnSlow
from serve.imaging.fork_server import ForkServer, Terms, cause_of_death
from serve.imaging.formats import HEIC, Data
from serve.imaging.limits import check_early
from serve.imaging.messages import Request, Rules
from serve.imaging.replies import Gone, Overrun, Postponed, check_reply
from serve.imaging.sandbox import ISOLATED, SEALED

AUTO, REQUIRED = "auto", "required"
# Reasons for which a decoder ended before its time.
DEATHS: Final = ("overrun", "forbidden_call", "crash", "killed", "protocol")
# Images of up to this many pixels are decoded side by side, within this much memory each; larger ones one at a time.
_SMALL_PIXELS: Final = 4_000_000
_SMALL_MEMORY: Final = 112 * 2**20
# By default a decoder may have as many bytes a pixel of the largest image: WebP needs 16 (docs/serving.md).
_BYTES_A_PIXEL: Final = 17
_PAGE: Final = 2**16
# A decoder is replaced after so many images, because one that was taken over could falsify those that follow.
_MOST_IMAGES: Final = 1000
# Tries to start a decoder for an image.
_TRIES: Final = 5
# After so many deaths with no image decoded in between, further decoders are started ever more slowly.
_DEATHS_IN_A_ROW: Final = 16
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0


@dataclass(frozen=True)
class PoolOptions:
    """How decoders are kept.

    Attributes:
        rules: how images are decoded.
        max_bytes: the largest image file.
        memory: bytes of address space that a decoder may add; 0 for what the largest image needs.
        streams: decoders that are kept for reuse.
        reuse: formats whose decoder takes a further image; the others, and HEIC always, get a fresh decoder for each.
        sandbox: `AUTO` or `REQUIRED`.
    """

    rules: Rules
    max_bytes: int
    memory: int = 0
    streams: int = 1
    reuse: Collection[str] = ("JPEG", "PNG")
    sandbox: str = AUTO


class DecoderPool:
    """Decoder processes, taken by the threads that need an image decoded.

    Args:
        fork_server: forks the decoders; the caller closes it.
        options: how decoders are kept.

    Raises:
        StartError: no decoder can be started, or none sealed although that is required.
    """

    def __init__(self, fork_server: ForkServer, options: PoolOptions) -> None:
        self._fork_server = fork_server
        self._options = options
        crop_bytes = options.rules.spec.crop**2 * 3
        most = options.memory or max(options.rules.limits.max_pixels * _BYTES_A_PIXEL, _SMALL_MEMORY)
        self._terms = Terms(-(-crop_bytes // _PAGE) * _PAGE, min(_SMALL_MEMORY, most), most, True)
        self._reuse = set(options.reuse) - {HEIC}
        self._lock = threading.Lock()
        self._large = threading.Lock()
        self._used: deque[DecoderProcess] = deque()
        self._fresh: deque[DecoderProcess] = deque()
        self._deaths_in_a_row = 0
        self._closed = False
        self.on_death: Callable[[str], None] = lambda _: None
        self.on_slow: OnSlow = lambda _: False
        self.is_alone: Callable[[], bool] = lambda: False
        self.state = self._start()

    def decode(self, data: Data, format_name: str, view: int = 0) -> Crop:
        """Decodes an image as `Decoders.decode` does.

        Raises:
            RequestError: the image exceeds a limit, is damaged or of an unsupported variety, or ended its decoder.
            QueueFull: it takes long, and so do too many others.
        """
        options = self._options
        if len(data) > options.max_bytes:
            raise errors.UploadTooLarge(f"The file has {len(data)} bytes; the limit is {options.max_bytes} bytes.")
        check_early(data, format_name, options.rules.spec, options.rules.limits)
        request = Request(format_name, len(data), options.rules, _SMALL_PIXELS, view)
        try:
            return self._decode(request, data, self.on_slow)
        except Postponed:
            return self._decode(request, data, None)

    def _decode(self, request: Request, data: Data, on_slow: OnSlow | None) -> Crop:
        """Decodes an image that is within the limits that need no decoder; on_slow: as for `DecoderProcess.finish`."""
        started = time.perf_counter()
        decoder = self._begin(request, data)
        if on_slow is None:
            decoder.lower_priority()
        try:
            reply, pixels, seen = decoder.finish(request, self._large, on_slow)
            if not check_reply(reply, request, self._terms.all_memory):
                raise decoder.protocol_error()
        except QueueFull:
            decoder.retire()
            raise
        except RequestError:
            self._give_back(decoder, request.format_name)
            raise
        except Overrun:
            self._end_and_count(decoder, "overrun")
            limit = request.rules.limits.decode_seconds
            raise errors.DecodeTimeout(f"The image takes too long to decode; the limit is {limit:g} s.") from None
        except Gone:
            self._end_and_count(decoder)
            raise DecoderDied(f"The {request.format_name} image ended the process that was decoding it.") from None
        except BaseException:
            decoder.retire()
            raise
        self._give_back(decoder, request.format_name)
        seconds = time.perf_counter() - started
        resizing = min(seconds, reply.resize_ns / 1e9)
        return Crop(pixels, seconds - resizing, resizing, reply.upright_size, seen)

    def close(self) -> None:
        """Ends the decoders that are idle; those at work end with their image."""
        with self._lock:
            self._closed = True
            idle = [*self._used, *self._fresh]
            self._used.clear()
            self._fresh.clear()
        for decoder in idle:
            decoder.retire()

    def _start(self) -> str:
        """Forks the first decoders and returns their state."""
        first = self._first()
        if self._options.sandbox == REQUIRED and not first.sealed:
            first.retire()
            raise StartError(
                "sandbox=required, but this system does not allow a decoder to be sealed (seccomp); sandbox=auto "
                "starts with decoders that are isolated only"
            )
        self._fresh.append(first)
        for _ in range(self._options.streams - 1):
            self._refill()
        return SEALED if first.sealed else ISOLATED

    def _first(self) -> DecoderProcess:
        """Returns a decoder that is ready, and sealed unless that ends it; raises `StartError`."""
        for seal in (True, False):
            self._terms = self._terms._replace(seal=seal)
            try:
                first = self._fork()
            except OSError:
                break
            try:
                first.wait_ready()
                return first
            except Overrun:
                first.retire()
                break
            except Gone:
                if cause_of_death(first.end()) != "forbidden_call":
                    break
        raise StartError("no decoder process can be started")

    def _begin(self, request: Request, data: Data) -> DecoderProcess:
        """Finds a decoder that is alive and hands it the image."""
        # All that are idle may have died, as with the fork server.
        for _ in range(2 * self._options.streams + _TRIES):
            try:
                decoder = self._take(request.format_name)
            except OSError:
                break
            try:
                decoder.begin(request, data, not self.is_alone())
            except (Gone, OSError):  # OSError: there is no memory for the image
                self._end_and_count(decoder)
                continue
            except Overrun:
                self._end_and_count(decoder)
                break
            if decoder.sealed == (self.state == SEALED):
                return decoder
            self._end_and_count(decoder, "protocol")
        raise NotReady("No decoder process can be started; try again in a moment.")

    def _take(self, format_name: str) -> DecoderProcess:
        """Returns a decoder, and forks another ahead of need, but none with threads; raises `OSError`."""
        threads = format_name == HEIC
        with self._lock:
            if format_name in self._reuse and self._used:
                return self._used.popleft()  # in turn, so that one that does harm while idle is found
            taken = self._fresh.popleft() if self._fresh and not threads else None
            pause = 0.0 if taken else self._pause_seconds()
        time.sleep(pause)
        taken = taken or self._fork(threads)
        if not threads and not self._fresh and not self._pause_seconds():
            self._refill()
        return taken

    def _refill(self) -> None:
        with suppress(OSError):  # an image that needs it tries again
            decoder = self._fork()
            with self._lock:
                if not self._closed:
                    self._fresh.append(decoder)
                    return
            decoder.retire()

    def _give_back(self, decoder: DecoderProcess, format_name: str) -> None:
        reusable = format_name in self._reuse and decoder.reusable and decoder.images < _MOST_IMAGES
        with self._lock:
            self._deaths_in_a_row = 0
            if reusable and len(self._used) < self._options.streams and not self._closed:
                decoder.rest()
                self._used.append(decoder)
                return
        decoder.retire()

    def _fork(self, threads: bool = False) -> DecoderProcess:
        terms = self._terms._replace(threads=threads)
        return DecoderProcess(self._fork_server, terms, self._options.max_bytes)

    def _end_and_count(self, decoder: DecoderProcess, reason: str = "") -> None:
        """Ends a decoder that has failed, unless it has ended, and counts its death."""
        status = decoder.end()
        with self._lock:
            self._deaths_in_a_row += 1
        self.on_death(reason or ("protocol" if decoder.broke_protocol else cause_of_death(status)))

    def _pause_seconds(self) -> float:
        """Returns how long to wait before another decoder is forked."""
        beyond = self._deaths_in_a_row - _DEATHS_IN_A_ROW
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(beyond, 10)) if beyond > 0 else 0.0
